"""A prompt as a chain of hashes: every place at which an earlier prompt or answer may end.

A rolling hash runs over the atoms. A text in several blocks counts as one; the ends of its blocks
are places, too. Runs of results are hashed in one go and sorted (clients send them in order of
completion or of call), runs of the assistant's atoms likewise, where its text counts only if it
called nothing (some clients drop text beside calls). System prompt and tools stand outside the
chain, in `head`: a change of them with the same chain is a handoff.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from typing import Final, NamedTuple

import msgspec
import xxhash

from agentsched.model import Prefix, PrefixId
from agentsched.proxy.answer import Answer
from agentsched.proxy.identity.atoms import Atom, Kind, Message, Normaliser, spoken
from agentsched.proxy.identity.memo import Memo
from agentsched.proxy.identity.records import TextEnd
from agentsched.proxy.identity.signs import signs_of
from agentsched.proxy.request import Dialect, ParsedRequest
from agentsched.proxy.token_ids import ID_BYTES, pack

_CHUNK: Final = 1_024
_SMALL_CHUNKS: Final = (64, 128, 256, 512)
_PREFIXES_MAX: Final = 8
_KEPT_ATOMS_MAX: Final = 256
_PREFILL_BYTES_MAX: Final = 16_384
_ANSWERS_MAX: Final = 32
#: Of the latest answers, and of the places before them, of which a message of blocks has many.
_POINTS_MAX: Final = 4 * _ANSWERS_MAX
_ANSWERING: Final = (Kind.ASSISTANT, Kind.CALL)
#: Characters; of an answer that comes back shortened one of its beginnings is left.
BEGINNINGS: Final = (16, 64, 256)
HASH_BYTES: Final = 8
#: The characters of call ids that take as much as an atom does.
_REFS_PER_ATOM: Final = 128


class Prefill(NamedTuple):
    """The beginning of an answer, with which a prompt ends: its text, and the chain before it.

    `before` are the assistant's atoms that stand between the two.
    """

    chain: bytes
    before: tuple[Atom, ...]
    text: str


class Point(NamedTuple):
    """A place in the chain. `atom` is the index of the first atom behind it."""

    chain: bytes
    atom: int
    size: int


class Said(NamedTuple):
    """An answer in a prompt: the place before it, its message, and whether calls are beside it."""

    before: Point
    raw: msgspec.Raw
    is_calling: bool


@dataclass(slots=True, kw_only=True)
class Prompt:
    """One digested prompt. `points` are in order, the last one is the whole prompt.

    `refs` are the call ids in order of appearance; `results` those of the results behind the last
    answer. `is_first` means that no assistant has answered in it yet. `text` is a completion's
    prompt, of `is_ids` its token ids, packed. `signs` are those of the system prompt and of the
    last message. `size` is in bytes of text; `is_told` means that all of it stands in the request,
    and as text.
    """

    points: list[Point]
    atoms: list[Atom]
    head: bytes
    head_size: int
    tools: int
    system_signs: int
    last_signs: int
    refs: list[str]
    results: tuple[str, ...]
    is_first: bool
    size: int
    is_told: bool = True
    text: bytes | None = None
    is_ids: bool = False
    boundaries: list[tuple[bytes, int]] = field(default_factory=list)

    @property
    def end(self) -> bytes:
        return self.points[-1].chain

    @property
    def goes_on(self) -> bool:
        """Whether somebody went on after an answer: what is last may be the beginning of one."""
        if self.is_first or not self.atoms or self.atoms[-1].kind not in _ANSWERING:
            return not self.is_first
        answers = [atom.kind in _ANSWERING for atom in self.atoms]
        return any(is_one and not follows for is_one, follows in pairwise(answers))

    def tokens(self, ratio: float) -> int:
        """An estimate, at so many bytes per token; of token ids it is the count."""
        return _tokens(self.size, ID_BYTES if self.is_ids else ratio)


class Digester:
    """Digests prompts. Pure but for its bounded memory of messages that it has normalised."""

    def __init__(self, *, seed: int, messages_max: int) -> None:
        self._seed = seed
        self._normaliser = Normaliser(seed=seed)
        self._memo: Memo[Atom | Message] = Memo(messages_max, weigh=_weight)
        self._systems: Memo[tuple[bytes, int]] = Memo(4_096)
        #: By a head with messages in it, for prompts that are continued by response id: the head
        #: without them, and the size of the whole.
        self._bare: Memo[tuple[bytes, int]] = Memo(4_096)

    def __len__(self) -> int:
        return len(self._memo)

    def link(self, chain: bytes, data: bytes) -> bytes:
        """The chain, one link longer."""
        return xxhash.xxh3_128_digest(chain + data, seed=self._seed)

    def digest(
        self,
        request: ParsedRequest,
        *,
        base: bytes = b"",
        base_size: int = 0,
        base_head: bytes = b"",
    ) -> Prompt:
        """Digest a request's prompt; `base` is the chain that it continues by response id, under
        the head `base_head`."""
        if request.dialect is Dialect.COMPLETIONS:
            return self._completion(request)
        atoms: list[Atom] = []
        sizes: list[int] = []
        #: Atoms that hold the text of the one before.
        joined: set[int] = set()
        signs, media = 0, 0
        for raw in request.messages:
            known = self._message(raw)
            if type(known) is Atom:
                atoms.append(known)
                sizes.append(len(raw))
                signs = 0
            else:
                signs = known.signs  # type: ignore[union-attr]
                if known.joined:  # type: ignore[union-attr]
                    joined.update(_places(known.joined, len(atoms)))  # type: ignore[union-attr]
                atoms.extend(known.atoms)  # type: ignore[union-attr]
                media += known.media  # type: ignore[union-attr]
                count = len(atoms) - len(sizes)
                if count:
                    sizes.extend([0] * (count - 1))
                    sizes.append(len(raw) - known.spare)  # type: ignore[union-attr]
        lead = 0
        while lead < len(atoms) and atoms[lead].kind == Kind.SYSTEM:
            lead += 1
        if lead == len(atoms):
            lead = 0  # a prompt of system messages only: they are what it says
        said = [atoms[at] for at in range(lead) if at + 1 not in joined]
        head, system_signs, tools = self._head(request, said)
        head_size = sum(sizes[:lead]) + _size(request.system) + _size(request.tools)
        if request.dialect is Dialect.RESPONSES:
            head, head_size = self._whole_head(request, head, head_size, lead, base_head)
        prompt = Prompt(
            points=[],
            atoms=atoms,
            head=head,
            head_size=head_size,
            tools=tools,
            system_signs=system_signs | self._lead_signs(request, lead),
            last_signs=signs,
            refs=[],
            results=(),
            is_first=True,
            size=base_size,
            is_told=not base and not media,
        )
        self._chain(prompt, sizes, lead, base, joined)
        return prompt

    def _message(self, raw: msgspec.Raw) -> Atom | Message:
        """A normalised message; one that is a single atom without signs stands for itself."""
        key = xxhash.xxh3_128_digest(raw, seed=self._seed)
        known = self._memo.get(key)
        if known is None:
            message = self._normaliser.message(raw)
            known = message
            if len(message.atoms) == 1 and not message.signs and not message.media:
                known = message.atoms[0]
            # The memory has room for so many atoms, so no message may fill it alone.
            if len(message.atoms) <= _KEPT_ATOMS_MAX:
                self._memo.put(key, known)
        return known

    def _lead_signs(self, request: ParsedRequest, lead: int) -> int:
        if not lead:
            return 0
        signs = 0
        for raw in request.messages[:lead]:
            known = self._message(raw)
            signs |= known.signs if isinstance(known, Message) else 0
        return signs

    def _head(self, request: ParsedRequest, lead: Sequence[Atom]) -> tuple[bytes, int, int]:
        system, signs, tools = b"", 0, 0
        if request.system is not None:
            system, signs = self._system(request.system)
        data = b""
        if request.tools is not None and len(request.tools) > 4:  # more than `[]` or `null`
            data = xxhash.xxh3_128_digest(request.tools, seed=self._seed)
            tools = 1
        data += b"|" + system + b"".join([atom.digest for atom in lead])
        return self.link(request.model.encode(), data), signs, tools

    def _whole_head(
        self, request: ParsedRequest, head: bytes, size: int, lead: int, base_head: bytes
    ) -> tuple[bytes, int]:
        """The head and its size: of a prompt that another is continued by, whose system prompt
        stands in its messages, these are not sent again."""
        if lead:
            if self._bare.get(head) is None:
                self._bare.put(head, (self._head(request, ())[0], size))
            return head, size
        known = self._bare.get(base_head) if base_head and request.system is None else None
        return (base_head, known[1]) if known is not None and known[0] == head else (head, size)

    def _system(self, raw: msgspec.Raw) -> tuple[bytes, int]:
        key = xxhash.xxh3_128_digest(raw, seed=self._seed)
        known = self._systems.get(key)
        if known is None:
            known = self._read_system(raw)
            self._systems.put(key, known)
        return known

    def _read_system(self, raw: msgspec.Raw) -> tuple[bytes, int]:
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            return xxhash.xxh3_128_digest(raw, seed=self._seed), 0
        blocks = value if isinstance(value, list) else [value]
        texts = [
            block if isinstance(block, str) else str(block.get("text", ""))
            for block in blocks
            if isinstance(block, (str, dict))
        ]
        signs = 0
        for text in texts:
            signs |= signs_of(text)
        if texts and texts[0].startswith("x-anthropic-billing-header:"):
            del texts[0]  # it may vary from request to request
        said = "".join(texts).strip().encode("utf-8", "surrogatepass")
        return self._normaliser.digest(Kind.SYSTEM, said), signs

    def _chain(
        self, prompt: Prompt, sizes: list[int], lead: int, base: bytes, joined: Set[int]
    ) -> None:
        atoms, points = prompt.atoms, prompt.points
        # What it goes on from was sent with a head, too.
        chain, size = base, prompt.size or prompt.head_size
        at, count, answered = lead, len(atoms), lead
        before = chain  # behind which the text of several blocks begins
        refs = prompt.refs
        digest, seed = xxhash.xxh3_128_digest, self._seed
        while at < count:
            kind, data, ref = atoms[at]
            size += sizes[at]
            if at in joined:
                chain = before
            before = chain
            at += 1
            if kind >= Kind.ASSISTANT:
                start = at - 1
                is_result = kind == Kind.RESULT
                while at < count and atoms[at].kind >= Kind.ASSISTANT:
                    if (atoms[at].kind == Kind.RESULT) is not is_result:
                        break
                    size += sizes[at]
                    at += 1
                if at - start > 1:
                    run = atoms[start:at]
                    data = run_data(run)
                    for atom in run:
                        refs.extend(atom.ref.split())
                elif ref:
                    refs.extend(ref.split())
                if not is_result:
                    answered = at
                    # What is said before anybody asked is a greeting, and answers nothing.
                    if start > lead or any(atom.kind != Kind.ASSISTANT for atom in atoms[lead:at]):
                        prompt.is_first = False
            chain = digest(chain + data, seed=seed)
            points.append(Point(chain, at, size))
        if not points:
            points.append(Point(self.link(base, b"empty"), count, size))
        prompt.is_first = prompt.is_first and not base
        prompt.size = size
        prompt.results = tuple(
            atom.ref for atom in atoms[answered:] if atom.kind == Kind.RESULT and atom.ref
        )

    def answer_chain(self, chain: bytes, answer: Answer) -> bytes | None:
        """The chain of a prompt and its answer; None where the answer holds nothing."""
        atoms = [
            self._normaliser.call(call.call_id, call.name, call.arguments) for call in answer.calls
        ]
        if not atoms:
            # A client sends each message back by itself.
            texts = filter(None, map(spoken, answer.messages))
            atoms = [self._normaliser.text(Kind.ASSISTANT, text) for text in texts]
        if not atoms:
            return None
        return self.link(chain, run_data(atoms))

    def prefill(self, request: ParsedRequest, prompt: Prompt) -> Prefill | None:
        """What a prompt begins of its answer; None where it does not, as most do not."""
        if not prompt.atoms or prompt.atoms[-1].kind != Kind.ASSISTANT or len(prompt.points) < 2:
            return None
        chain, start, _ = prompt.points[-2]
        *before, last = prompt.atoms[start:]
        text = _said_in(request.messages[-1])
        is_it = self._normaliser.text(Kind.ASSISTANT, spoken(text)).digest == last.digest
        if not is_it or any(atom.kind != Kind.ASSISTANT for atom in before):
            return None
        return Prefill(chain, tuple(before), text)

    def continued_chains(self, prefill: Prefill, answer: Answer) -> list[bytes]:
        """The chains of a prompt and an answer that it began.

        Clients keep both as one message; or as two; or what was answered alone.
        """
        if answer.calls:
            chain = self.answer_chain(prefill.chain, answer)
            return [] if chain is None else [chain]
        if not answer.text.strip():
            return []
        texts = (prefill.text + answer.text, prefill.text, answer.text)
        whole, begun, ended = (self._normaliser.text(Kind.ASSISTANT, spoken(t)) for t in texts)
        return [
            self.link(prefill.chain, run_data([*prefill.before, *atoms]))
            for atoms in ([whole], [begun, ended], [ended])
        ]

    def answers_in(
        self, request: ParsedRequest, prompt: Prompt, *, is_ours: Callable[[bytes], object]
    ) -> Iterator[Said]:
        """The answers in a prompt, the latest first, of those before which a prompt of ours ends.

        And the latest where calls are beside it: what went on already is known by its answer alone.
        For prompts that go on from nothing known only: their messages are looked up once more.
        """
        atoms = prompt.atoms
        ends = {
            point.atom: point
            for point in prompt.points[-_POINTS_MAX:-1]
            if atoms[point.atom].kind in _ANSWERING
        }
        sought = {at for at, point in ends.items() if is_ours(point.chain)}
        if ends:
            latest = max(ends)
            if any(atom.kind == Kind.CALL for atom in atoms[latest : latest + 2]):
                sought.add(latest)
        start = len(atoms)
        for raw in reversed(request.messages[-_ANSWERS_MAX:] if sought else ()):
            known = self._message(raw)
            own = (known,) if isinstance(known, Atom) else known.atoms
            start -= len(own)
            if own and start in sought:
                is_calling = any(atom.kind == Kind.CALL for atom in atoms[start : start + 2])
                yield Said(ends[start], raw, is_calling)
                sought.remove(start)
            if not sought:
                return

    def spoken_in(self, said: Said) -> str:
        """An answer's text. It is decoded for that."""
        return spoken(_said_in(said.raw))

    def spoken_chain(self, chain: bytes, text: str) -> bytes:
        """The chain of a prompt and an answer that is this text."""
        return self.link(chain, self._normaliser.text(Kind.ASSISTANT, text).digest)

    def beginnings(self, text: str) -> bytes:
        """Short hashes of the beginnings of a text that it is longer than."""
        return b"".join(
            xxhash.xxh3_64_digest(text[:size].encode("utf-8", "surrogatepass"), seed=self._seed)
            for size in BEGINNINGS
            if size < len(text)
        )

    def said(self, text: str) -> bytes:
        """The digest that an assistant's atom with this text has."""
        return self._normaliser.text(Kind.ASSISTANT, spoken(text)).digest

    # -- completions: a prompt is one text, and an earlier one may end anywhere in it ------------

    def _completion(self, request: ParsedRequest) -> Prompt:
        text, is_ids = _prompt_text(request)
        head = self.link(request.model.encode(), b"completion")
        boundaries = self._boundaries(text)
        prompt = Prompt(
            points=[],
            atoms=[],
            head=head,
            head_size=0,
            tools=0,
            system_signs=0,
            last_signs=0 if is_ids else signs_of(text.decode("utf-8", "replace")),
            refs=[],
            results=(),
            is_first=True,
            size=len(text),
            is_told=not is_ids,
            text=text,
            is_ids=is_ids,
            boundaries=boundaries,
        )
        for chain, length in boundaries[1:]:
            prompt.points.append(Point(chain, 0, length))
        chain, length = boundaries[-1]
        prompt.points.append(Point(self.link(chain, text[length:]), 0, len(text)))
        return prompt

    def _boundaries(self, text: bytes) -> list[tuple[bytes, int]]:
        """Chain and length at each chunk's end: fine at the start, then every kilobyte."""
        chain, at = self.link(b"", b"text"), 0
        return [(chain, 0), *self.boundaries_from(chain, at, text)]

    def boundaries_from(self, chain: bytes, at: int, tail: bytes) -> list[tuple[bytes, int]]:
        """The further boundaries of a text of which `at` bytes are hashed, and `tail` follows."""
        found: list[tuple[bytes, int]] = []
        start, length = at, at + len(tail)
        while True:
            end = next((e for e in _SMALL_CHUNKS if e > at), (at // _CHUNK + 1) * _CHUNK)
            if end > length:
                return found
            chain = self.link(chain, tail[at - start : end - start])
            at = end
            found.append((chain, at))

    def _begun(self, prompt: Prompt, end: TextEnd) -> Point | None:
        """Where in a completion's prompt an earlier one and its answer end, if it begins so.

        Under the name that the answer got, in whichever of its forms it came back.
        """
        text, starts = prompt.text or b"", dict(prompt.boundaries)
        for chain, (boundary, length) in zip(end.chains, end.places, strict=True):
            start = starts.get(boundary)
            if start is None or not start <= length <= len(text):
                continue
            if self.link(boundary, text[start:length]) == chain:
                return Point(end.chains[0], 0, length)
        return None

    def prefixes(
        self,
        prompt: Prompt,
        marks: Sequence[bytes],
        ratio: float,
        known: TextEnd | None = None,
    ) -> tuple[Prefix, ...]:
        """Name at most eight beginnings of a prompt, shortest first; `ratio` is bytes per token.

        Beginnings at fixed counts (1, 4, 16, ...) are found again by other programs; `marks` are
        chains of this conversation's past, which engines hold already; a completion's prompt has
        no messages that end there, and `known` says where to look.
        """
        ratio = ID_BYTES if prompt.is_ids else ratio
        wanted: list[Point] = []
        last = len(prompt.points) - 1
        fixed = {0, 3, 15, 63}
        for at, point in enumerate(prompt.points):
            if at == last or at in fixed or (marks and point.chain in marks):
                wanted.append(point)
        begun = self._begun(prompt, known) if known is not None else None
        if begun is not None:
            insort(wanted, begun, key=attrgetter("size"))
        wanted = wanted[-(_PREFIXES_MAX - 1) :]
        named = [
            Prefix(prefix=PrefixId(prompt.head.hex()), tokens=_tokens(prompt.head_size, ratio))
        ]
        for point in wanted:
            named.append(self.prefix(prompt.head, point.chain, point.size, ratio))
        return tuple(named)

    def prefix(self, head: bytes, chain: bytes, size: int, ratio: float) -> Prefix:
        """Name the beginning that ends at `chain`, under this system prompt and these tools."""
        return Prefix(prefix=PrefixId(self.link(head, chain).hex()), tokens=_tokens(size, ratio))


def _weight(known: Atom | Message) -> int:
    """How many short messages' room a message takes that is remembered."""
    atoms = (known,) if isinstance(known, Atom) else known.atoms
    return max(1, sum(1 + len(atom.ref) // _REFS_PER_ATOM for atom in atoms))


def _places(bits: int, start: int) -> Iterator[int]:
    """The places, counted from `start`, of the bits that are set."""
    return (start + at for at in range(bits.bit_length()) if bits >> at & 1)


def run_data(run: Sequence[Atom]) -> bytes:
    """What a run of assistant's atoms or of results adds to the chain."""
    if len(run) == 1:
        return run[0].digest
    said = [atom.digest for atom in run if atom.kind != Kind.ASSISTANT]
    if not said:
        return b"".join(atom.digest for atom in run)
    return b"".join(sorted(said))


def _said_in(raw: msgspec.Raw) -> str:
    """The text of one message; empty where it is long, for it has to be kept for a while."""
    if len(raw) > _PREFILL_BYTES_MAX:
        return ""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return ""
    content = value.get("content") if isinstance(value, dict) else None
    parts = content if isinstance(content, list) else [content]
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def _prompt_text(request: ParsedRequest) -> tuple[bytes, bool]:
    """A completion's prompt, and whether it is of token ids, packed."""
    for raw in request.messages:
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            return bytes(raw), False
        if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], int):
            value = value[0]
        if isinstance(value, str):
            return value.encode("utf-8", "surrogatepass"), False
        ids = pack(value) if isinstance(value, list) else None
        return (ids, True) if ids else (bytes(raw), False)
    return b"", False


def _size(raw: msgspec.Raw | None) -> int:
    return 0 if raw is None else len(raw)


def _tokens(size: int, ratio: float) -> int:
    return max(1, round(size / ratio))
