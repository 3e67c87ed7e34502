"""The parts of a plan about bytes: of a rank, of its GPU with the KV cache, and of the hosts."""

from dsv4_shard.catalog.rank_ranges import span_of
from dsv4_shard.text.document import Document
from dsv4_shard.text.units import counted, gib, size


class PlanTotals(Document):
    """Bytes per rank, exactly those of the tensors in its files; target and draft (MTP) separately.

    The `other` bytes (constants, the draft's own embedding and head) are in no module's row. The `other`, `replicated`
    and `padding` bytes are included in the bytes per rank. With pipeline stages these are of the fullest stage, but for
    the least bytes, which are of the one with least, and those of the draft, which is on the last.
    """

    ranks: int
    target_bytes_per_rank_min: int
    target_bytes_per_rank_max: int
    draft_bytes_per_rank: int
    other_target_bytes_per_rank: int
    other_draft_bytes_per_rank: int
    replicated_bytes_per_rank: int
    padding_bytes_per_rank: int
    shared_experts_bytes_per_rank: int
    shared_experts_weight_bytes_per_layer: int


class PlanStage(Document):
    """A pipeline stage, in bytes of weights per rank of its own; the draft is on the last.

    `layers`, `ranks` and `nodes` are half-open: from the first, up to but without the second.
    """

    stage: int
    layers: tuple[int, int]
    ranks: tuple[int, int]
    nodes: tuple[int, int]
    target_bytes_per_rank_min: int
    target_bytes_per_rank_max: int
    draft_bytes_per_rank: int

    @property
    def words(self) -> str:
        """The stage in one line."""
        layers, ranks = (span_of(range(*span)) for span in (self.layers, self.ranks))
        nodes = span_of(range(*self.nodes))
        where = f"node{'' if nodes.isdecimal() else 's'} {nodes}"
        draft = f", draft {gib(self.draft_bytes_per_rank)}" if self.draft_bytes_per_rank else ""
        weights = f"{gib(self.target_bytes_per_rank_max)} per GPU{draft}"
        return f"stage {self.stage}: layers {layers} on ranks {ranks} ({where}), {weights}"


_NAMES_LONGEST = {
    "--gpu-memory-utilization": "without a shorter --max-model-len vLLM stops, and names the longest that fits"
}
"""What an engine does if the context does not fit, by its option for the share of memory."""


class PlanCache(Document):
    """KV cache by the engine's own accounting, on each rank; without a draft model, and with the engine's defaults.

    `option` sets the `share` of memory that weights and cache may take; `share` is the engine's default. `room` is
    the likely number of bytes for the cache, between `room_least` and `room_most`: what an engine holds beside
    weights and cache is only measured, in published logs. A session has `session` tokens, those asked for or the
    model's longest context (`longest_session`), and needs `session_bytes` of room.

    `fits` says whether such a session fits: None if that depends on where in its bounds the room is.
    `certain_session` is the longest session that fits for certain, and `share_needed` a share in which the session
    fits; None if it fits already, or in no share. `share_least` is a share in which a session of 32,768 tokens fits,
    None if it fits in none. `never_fits`: no share leaves room for a single token.

    `tokens` is the number that the engine prints, and `sessions` how many sessions it holds at once, for each of
    `groups` attention groups; 0 if the share leaves no room, so that the engine stops. Both are None if the bounds
    of the room change the tokens by more than 15 %.
    """

    option: str
    share: float
    room: int
    room_least: int
    room_most: int
    session: int
    longest_session: int | None
    session_bytes: int
    fits: bool | None
    certain_session: int
    share_needed: float | None
    share_least: float | None
    never_fits: bool
    groups: int
    tokens: int | None
    sessions: int | None

    @property
    def stops_by_default(self) -> bool:
        """Whether the default share leaves no room for a single token, so that the engine stops."""
        return self.tokens == 0

    @property
    def stops(self) -> bool:
        """Whether the engine stops by default, and no share is certain to leave room."""
        return self.never_fits or (self.stops_by_default and self.share_least is None)

    @property
    def all_sessions(self) -> int | None:
        """Sessions that the whole deployment holds at once."""
        return None if self.sessions is None else self.sessions * self.groups

    @property
    def words(self) -> tuple[str, str]:
        """Two sentences: the room and its tokens, and whether the session fits."""
        return self._room_in_words, self._session_in_words

    @property
    def _room_in_words(self) -> str:
        default = f"the default {self.option} {self.share:g}"
        if self.stops_by_default:
            return f"{default} leaves no room for KV cache beside the weights"
        bounds = f"{gib(max(0, self.room_least))} to {gib(self.room_most)}"
        tokens = "how many tokens that holds is not certain enough to say"
        if self.tokens is not None:
            each = " in each attention group" if self.groups > 1 else ""
            tokens = f"about {self.tokens:,} tokens{each}"
        return f"{bounds} for KV cache at {default}: {tokens}"

    @property
    def _session_in_words(self) -> str:
        context = f"a context of {self.session:,} tokens"
        if self.longest_session is not None and self.session > self.longest_session:
            return f"{context} does not fit: the model's longest is {self.longest_session:,}"
        if self.fits and self.sessions is not None:
            several = f" in each of {self.groups} attention groups, {self.all_sessions:,} in all"
            return f"{context} fits: {counted(self.sessions, 'session')} at once{several if self.groups > 1 else ''}"
        if self.fits:
            return f"{context} fits; it takes {gib(self.session_bytes)}"
        verdict = "does not fit" if self.fits is False else "may not fit"
        ways = []
        if self.certain_session:
            ways.append(f"up to {self.certain_session:,} tokens fit for certain")
        if self.share_needed is not None:
            ways.append(f"{self.option} {self.share_needed:g} makes room")
        if not ways and self.option in _NAMES_LONGEST:
            ways.append(_NAMES_LONGEST[self.option])
        advice = f": {', or '.join(ways)}" if ways else ""
        return f"{context} {verdict}; it takes {gib(self.session_bytes)} of room{advice}"


class PlanMemory(Document):
    """Whether the weights fit on the named GPU, in bytes.

    `kv_cache` is None if the weights do not fit, or if the engine's KV cache is not verified for the model and GPU.
    `no_cache` says why the engine stops for want of it; None if it does not.
    """

    gpu: str
    capacity: int
    weights: int
    left: int
    fits: bool
    kv_cache: PlanCache | None
    no_cache: str | None = None

    @property
    def serves(self) -> bool:
        """Whether the weights fit, with some KV cache beside them."""
        return self.fits and self.no_cache is None


class PlanHost(Document):
    """What the fullest node holds on its disk and in its host memory, in bytes.

    The engine reads `reads`: shards, or the checkpoint (`checkpoint_bytes`, which `reshard` reads). `disk_bytes`
    are the files that the node reads, those under several names once. They pass through the page cache, which the
    kernel drops where memory is short. `window_bytes` are the tensors that loaders map at once by the code in `source`:
    with less free memory, pages are read again. `pinned_bytes` stay for as long as the engine runs, and `pinned`
    says what they are (None: nothing). Beside these are the processes' own memory and CUDA's, which are not
    counted.
    """

    nodes: int
    reads: str
    disk_bytes: int
    checkpoint_bytes: int
    window_bytes: int
    pinned_bytes: int
    pinned: str | None
    source: str

    @property
    def words(self) -> str:
        """The numbers in one sentence."""
        each = "each node" if self.nodes > 1 else "the node"
        pinned = f"; {gib(self.pinned_bytes)} of host memory stay pinned: {self.pinned}" if self.pinned else ""
        return (
            f"{each} has {size(self.disk_bytes)} of {self.reads} on its disk, and maps up to {gib(self.window_bytes)} "
            f"of it into memory at once while it loads{pinned}"
        )
