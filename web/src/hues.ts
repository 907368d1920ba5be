// Colours of tenants: those that are shown together differ, for as long as there are colours.

const COLOURS = 8;
const REMEMBERED_MAX = 500;

const given = new Map<string, number>();

/** The colour class of a tenant: the first of those that the fewest have. It keeps it. */
export function hue(name: string): number {
  const found = given.get(name);
  if (found !== undefined) return found;
  const owners = new Array<number>(COLOURS).fill(0);
  for (const colour of given.values()) owners[colour]!++;
  const colour = owners.indexOf(Math.min(...owners));
  given.set(name, colour);
  if (given.size > REMEMBERED_MAX) given.delete(given.keys().next().value!);
  return colour;
}

/** Give colours to tenants that have none: first to the busiest, which are named first. */
export function giveHues(names: string[]): void {
  // By name among themselves: the same tenants have the same colours at the next visit.
  for (const name of names.slice(0, COLOURS).sort()) hue(name);
  for (const name of names.slice(COLOURS).sort()) hue(name);
}
