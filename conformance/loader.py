"""Our loader within SGLang, in deployments that its files were made for and others: it loads what SGLang loads, or
refuses.

SGLang loads the checkpoint in each deployment too, by its default loader. Where our loader takes the files, every
parameter must be the same; where it refuses them, the reason must be the expected one.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from conformance.engines import Engine
from conformance.files import output_of, reshard_case
from conformance.oracles import checkpoint_of
from conformance.signatures import RECORDED
from conformance.variations import VARIATIONS, Variation
from conformance.written import DRAFT_FOLDER


def check_loader(engine: Engine, words: list[str], *, update: bool) -> int:
    """Load in every deployment whose name has one of `words`, and compare, or write, the recorded signatures.

    Returns how many failed.
    """
    variations = [one for one in VARIATIONS if not words or any(word in one.name for word in words)]
    for one in variations:
        for line in reshard_case(one.case, engine.work):
            raise SystemExit(f"{one.case.name}: {line}")
    own = {result["job"]["variation"]: result for result in engine.run(_own_loads(engine, variations))}
    named = {one.name: one for one in variations}
    failed = _check_signatures(engine, update=update)
    compared = 0
    for result in engine.run(_our_loads(engine, variations, own)):
        one = named[result["job"]["variation"]]
        lines = list(_failures(one, own[one.name], result))
        print(f"loader {one.name}: {_outcome(result, own[one.name])}" + (", FAILED" if lines else ""), flush=True)
        for line in lines[:8]:
            print(f"    {line}")
        failed += bool(lines)
        compared += result.get("compared", 0)
    refused = sum(one.refused is not None for one in variations)
    counts = f"{len(variations)} deployments, {refused} to be refused, {compared} parameters compared"
    print(f"loader: {counts}, {failed} failed")
    return failed


def _check_signatures(engine: Engine, *, update: bool) -> int:
    """Compare SGLang's signatures with those that the tests' stand-in follows; 1 if they differ."""
    case = VARIATIONS[0].case
    job = {"do": "signatures", "case": case.to_dict(), "rank": 0, "model": str(checkpoint_of(case, engine.work))}
    (result,) = engine.run([job])
    found = {key: value for key, value in result.items() if key != "job"}
    if update and "error" not in found:
        RECORDED.write_text(json.dumps(found, indent=1) + "\n")
    same = RECORDED.exists() and json.loads(RECORDED.read_text()) == found
    print(f"loader signatures: {len(found.get('signatures', ()))}" + ("" if same else f", FAILED: not {RECORDED.name}"))
    return int(not same)


def _own_loads(engine: Engine, variations: list[Variation]) -> Iterator[dict[str, Any]]:
    for one in variations:
        yield {"do": "oracle", "model": str(checkpoint_of(one.case, engine.work))} | one.to_job()


def _our_loads(engine: Engine, variations: list[Variation], own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for one in variations:
        out = output_of(one.case, engine.work)
        job = {"do": "load", "model": str(out), "draft": str(out / DRAFT_FOLDER), "load_format": "dsv4_shard"}
        result = own[one.name]
        yield job | {"want": result.get("params", {}), "turned": result.get("turned", {})} | one.to_job()


def _failures(one: Variation, own: dict[str, Any], result: dict[str, Any]) -> Iterator[str]:
    error = result.get("error")
    if one.refused is None:
        if error or "params" not in own:
            yield f"not loaded: {error or own.get('error')}"
        yield from result.get("differences", [])
    elif error is None:
        yield "loaded, and should be refused"
    elif not re.match(f"LoadRefused: {one.refused}", error):
        yield f"another reason: {error}"


def _outcome(result: dict[str, Any], own: dict[str, Any]) -> str:
    if "error" not in result:
        return f"{result['compared']} parameters loaded"
    return str(result["error"]) + ("" if "params" in own else f" (SGLang: {own.get('error', '')[:100]})")
