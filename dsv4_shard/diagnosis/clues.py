"""The deployment that a log describes: engine, version, model, parallelism and loader, in every form that is printed.

The forms are command lines, arguments as a dict or as keywords, YAML and JSON lists, start-up banners, container images
and the prefixes of ranks. Earlier lines win. An argument wins over a path that is only mentioned.
"""

import re
from dataclasses import dataclass, field

from dsv4_shard.diagnosis.releases import find_release
from dsv4_shard.engines import ENGINES, LOG_WORDS, find_engine

_VALUE = r"['\"]?(?:['\"],\s{{0,2}}|\s{{0,2}}[=:( ]\s{{0,2}})['\"]?({value})"

_OPTION = rf"(?<![\w-])['\"]?-{{{{0,2}}}}(?:{{names}}){_VALUE}"


def _option(names: str, value: str = r"[1-9]\d{0,3}\b(?!\.\d)") -> re.Pattern[str]:
    return re.compile(_OPTION.format(names=names, value=value))


_NUMBERS = {
    "tp": (("tp", "tensor"), _option("tensor[ _-]parallel[ _-]size|tp[_-]size|tp")),
    "ep": (("ep", "expert"), _option("expert[ _-]parallel[ _-]size|ep[_-]size|ep")),
    "dp": (("dp", "data"), _option("data[ _-]parallel[ _-]size|dp[_-]size|dp")),
    "pp": (("pp", "pipeline"), _option("pipeline[ _-]parallel[ _-]size|pp[_-]size|pp")),
    "attn_dp": (("attn",), _option("attn[_-]dp[_-]size")),
}
"""Field of `Clues` → (words of which such a line contains one, in lower case; regular expression for the value)."""

_SWITCHES = {
    "dp_attention": re.compile(r"enable[_-]dp[_-]attention(?!['\"]?\s{0,2}[=: ]\s{0,2}(?:false|0))"),
    "expert_parallel": re.compile(
        r"(?:enable[_-]expert[_-]parallel|(?<!\S)-ep(?!\S))(?!['\"]?\s{0,2}[=: ]\s{0,2}(?:false|0))"
    ),
}

_LOAD_FORMAT = _option("load[_-]format", r"(?:LoadFormat\.)?\w{2,40}")

_DRAFT = re.compile(
    r"(?i)(?:speculative[_-]algorithm['\"]?(?:['\"],\s?|\s?[=: ]\s?)['\"]?|"
    r"speculative[_-]?config.{0,40}?method\\?['\"]?\s?[=:]\s?\\?['\"])([a-z]\w{1,30})"
)

_NAME = r"([^\s'\",;)}\]\\]{1,300})"

_MODEL = (
    re.compile(rf"(?<![\w-])['\"]?--model(?:[-_]path|[-_]tag)?['\"]?(?:\s{{0,2}}[=, ]\s{{0,2}})['\"]?{_NAME}"),
    re.compile(r"(?<![\w.-])['\"]?(?:model_tag|model_path|model)['\"]?\s?[=:]\s?['\"]([^'\"\n]{1,300})['\"]"),
    re.compile(rf"(?:vllm|sglang)['\"]?,?\s['\"]?serve['\"]?,?\s{{1,2}}['\"]?(?!-){_NAME}"),
    re.compile(rf"^\s*(?:- )?['\"]?model(?:[-_]path)?['\"]?:\s{{1,8}}{_NAME}\s*$"),
    re.compile(rf"█.*\bmodel\s{{1,8}}{_NAME}"),
    re.compile(r"Starting to load model (\S{1,300}?)(?:\.\.\.|\s|$)"),
)
"""Where engines and commands name the model; most certain first."""

_REQUEST = re.compile(r"['\"]model['\"]\s?:")

_OF_AN_ENGINE = ("args", "config", "parallel")
"""Words without which a line with `"model": ...` is a request to the server."""

_MENTION = re.compile(
    r"(?i)(?<!parser[ =:])(?<!parser=['\"])(?<!parser['\"]: ['\"])(?<![\w./@~-])"
    r"([\w./@~+-]{0,200}deepseek[-_](?:v4|v3|r1)[\w./@+-]{0,100})"
)

_FILE = re.compile(r"/[^/]*\.(?:safetensors|json|index|bin|py|lock)\b.*$")

_ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w{0,60})=['\"]?([^\s'\"]{1,300})")

_ALONE = re.compile(r"['\"]?--?[a-z][\w-]{1,60}['\"]?,?\Z")
"""An option that stands alone on its line; its value is on the next one, as in YAML."""

_ARGUMENTS = ("server_args", "serverargs(", "non-default args", "serve ", "launch_server", "api_server", "llm engine (")

_MAX_ARGUMENTS = 24
"""Lines of arguments that are kept, each at most as long as a line of a log is read."""

_RANKS = re.compile(r"(?<![A-Za-z])(DP|PP|TP|EP)(\d{1,4})(?!\d)")

_RANK_PREFIX = re.compile(r"\((?:\w+ )?Worker[\w ]*pid=|\[\d{4}-\d\d-\d\d[ T][\d:.,]+((?: [A-Z_]+\d+)+)\]")


@dataclass(slots=True)
class Clues:
    """A deployment, as far as the log describes it. Numbers are None if it does not.

    Attributes:
        engine: Name of the engine.
        version: Version of the engine.
        model: The model's repository or path, as it is an argument.
        mentioned: A path or repository that only occurs in the text, with a release's name in it.
        tp, ep, dp, pp, attn_dp: The sizes. DP counts as the engine counts it; see `dps`.
        dp_attention: Whether SGLang's attention DP is on.
        expert_parallel: Whether vLLM's expert parallelism is on.
        load_format: Value of `--load-format`.
        draft: Method or algorithm of speculative decoding.
        ranks: Highest rank + 1 in the prefixes of lines, by group (TP, EP, DP, PP).
    """

    engine: str | None = None
    version: str | None = None
    model: str | None = None
    mentioned: str | None = None
    tp: int | None = None
    ep: int | None = None
    dp: int | None = None
    pp: int | None = None
    attn_dp: int | None = None
    dp_attention: bool = False
    expert_parallel: bool = False
    load_format: str | None = None
    draft: str | None = None
    ranks: dict[str, int] = field(default_factory=dict)
    _pending: str = ""
    _arguments: list[str] = field(default_factory=list)
    _assigned: dict[str, str] = field(default_factory=dict)

    @property
    def named(self) -> str | None:
        """The model's repository or path: the argument, else the one that is mentioned."""
        return self.model or self.mentioned

    @property
    def dps(self) -> tuple[int, ...]:
        """Possible values of DP as `--dp` defines it.

        In some engines' logs, DP counts replicas unless attention DP is on.
        """
        if self.attn_dp is not None:
            return (self.attn_dp,)
        dp = self.dp or 1
        if self.dp_attention:
            return (dp,)
        if self.engine is None:
            return tuple({1, dp})
        return (1,) if find_engine(self.engine).logs_count_replicas else (dp,)

    @property
    def told_ep(self) -> int | None:
        """EP, if the log names it or turns vLLM's on."""
        if self.ep is None and self.expert_parallel and self.tp is not None:
            return self.tp * (self.dp or 1)
        return self.ep

    def argument(self, name: str) -> str | None:
        """The value that the log's arguments have for an option or argument; "is set" for an option without a value."""
        words = re.sub(r"[-_]", "[-_]", name.removeprefix("--"))
        regex = re.compile(
            rf"(?<![\w-])['\"]?(?:--)?{words}['\"]?(?![\w-])(?:(?:['\"]?,|\s?[=: ])\s?['\"]?([\w./+-]{{1,60}}))?"
        )
        for line in self._arguments:
            match = regex.search(line)
            if match is not None:
                value = match[1]
                return "is set" if value is None or value.startswith("-") else value
        return None

    def take(self, line: str, plain: str) -> None:
        """Take in a line; `plain` is the line without prefixes."""
        bare = plain.removeprefix("- ").strip()
        if self._pending and not bare.startswith("-"):
            line = f"{self._pending} {bare}"
        self._pending = bare.rstrip(",") if _ALONE.fullmatch(bare) else ""
        if "\\" in line:
            line = line.replace('\\"', '"').replace("\\'", "'")
        lower = line.lower()
        if len(self._arguments) < _MAX_ARGUMENTS and any(word in lower for word in _ARGUMENTS):
            self._arguments.append(line)
        self._take_engine(line, lower)
        self._take_sizes(line, lower)
        if "model" in lower or "serve" in lower or "deepseek" in lower:
            self._take_model(line, lower)
        if "=" in bare[:64] and len(self._assigned) < 64 and (match := _ASSIGNMENT.match(bare)):
            self._assigned.setdefault(match[1], match[2])

    def _take_engine(self, line: str, lower: str) -> None:
        if self.engine is None:
            self.engine = next((name for name, words in LOG_WORDS.items() if words.form.search(line)), None)
        if self.engine is None:
            words = {name: engine.log_word for name, engine in ENGINES.items() if engine.log_word}
            found = [(at, name) for name, word in words.items() if (at := _place_of(word, lower)) is not None]
            self.engine = min(found)[1] if found else None
        if self.version is None and self.engine in LOG_WORDS:
            match = LOG_WORDS[self.engine].version.search(line)
            self.version = match[1] if match else None

    def _take_sizes(self, line: str, lower: str) -> None:
        for name, (words, regex) in _NUMBERS.items():
            if getattr(self, name) is None and any(word in lower for word in words) and (found := regex.search(lower)):
                setattr(self, name, int(found[1]))
        for name, regex in _SWITCHES.items():
            if not getattr(self, name) and ("enable" in lower or "-ep" in lower) and regex.search(lower):
                setattr(self, name, True)
        if self.load_format is None and "load" in lower and (match := _LOAD_FORMAT.search(line)):
            self.load_format = match[1].removeprefix("LoadFormat.").lower()
        if self.draft is None and "speculative" in lower and (match := _DRAFT.search(line)):
            self.draft = match[1].lower()
        ranked = "TP" in line or "DP" in line or "PP" in line or "EP" in line
        if ranked and (prefix := _RANK_PREFIX.search(line)) is not None:
            end = line.find(")", prefix.start()) if prefix[1] is None else prefix.end()
            for group, rank in _RANKS.findall(line[prefix.start() : end]):
                self.ranks[group] = max(self.ranks.get(group, 0), int(rank) + 1)

    def _take_model(self, line: str, lower: str) -> None:
        if self.model is None:
            for regex in _MODEL:
                match = regex.search(line)
                if match is None or (_REQUEST.match(match[0]) and not any(word in lower for word in _OF_AN_ENGINE)):
                    continue
                if name := self._resolve(match[1]):
                    self.model = name
                    return
        if self.mentioned is None and "deepseek" in lower and (match := _MENTION.search(line)):
            name = _FILE.sub("", match[1]).rstrip("./:")
            if not name.endswith(".py") and find_release(name) is not None:
                self.mentioned = name

    def _resolve(self, name: str) -> str | None:
        """A model's name, with shell variables replaced that the log assigns; None for a placeholder."""
        if name.startswith("$"):
            name = self._assigned.get(name.strip('${}"'), "")
        name = name.rstrip("/") if len(name) > 1 else name
        placeholder = not name or name[0] in "<{$(-" or name in ("None", "model", "...") or name.endswith(".py")
        return None if placeholder else name


def _place_of(word: str, line: str) -> int | None:
    """Position of a word in a line; None if it is not there."""
    if word not in line:
        return None
    match = re.search(rf"\b{re.escape(word)}\b", line)
    return match.start() if match else None
