// Colours of tenants: those that are shown together differ, for as long as there are colours.

const COLOURS = 8;
const REMEMBERED_MAX = 500;

const given = new Map<string, number>();

/** Where a name would like to be, so that it mostly keeps its colour from visit to visit. */
function wish(name: string): number {
  let hash = 2166136261;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 16777619);
  return (hash >>> 0) % COLOURS;
}

/** The colour class of a tenant. Of the colours that the fewest have, the next from its wish on. */
export function hue(name: string): number {
  const found = given.get(name);
  if (found !== undefined) return found;
  const owners = new Array<number>(COLOURS).fill(0);
  for (const colour of given.values()) owners[colour]!++;
  const fewest = Math.min(...owners);
  let colour = wish(name);
  while (owners[colour] !== fewest) colour = (colour + 1) % COLOURS;
  given.set(name, colour);
  if (given.size > REMEMBERED_MAX) given.delete(given.keys().next().value!);
  return colour;
}

/** Give colours to tenants that have none: first to the busiest, which are named first. */
export function giveHues(names: string[]): void {
  // By name among themselves, so that the order of the moment does not choose the colours.
  for (const name of names.slice(0, COLOURS).sort()) hue(name);
  for (const name of names.slice(COLOURS).sort()) hue(name);
}
