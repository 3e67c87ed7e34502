"""Launches: changes are added to variables and options, and every setting that a change names is in the launch."""

import pytest
from support.checkpoints.full_size import PRO, V32, inventory_of

from dsv4_shard.engines import Change, Command, Launch, Request
from dsv4_shard.planning.plan_builder import make_plan

START = Launch({"A": "1"}, Command("serve MODEL", {"--tp": "8", "--share": "0.9"}))


def test_changes_become_variables_options_and_flags() -> None:
    changed = START.with_changes([Change("some", ("B=2", "--share 0.95", "--eager"), ""), Change("none", (), "")])
    assert changed.environment == {"A": "1", "B": "2"}
    assert changed.commands == ("serve MODEL --tp 8 --share 0.95 --eager",)
    assert START.commands == ("serve MODEL --tp 8 --share 0.9",)


def test_a_launch_that_starts_nothing_stays_as_it_is() -> None:
    assert Launch({}).with_changes([Change("share", ("--share 0.95",), "")]) == Launch({})


@pytest.mark.parametrize(
    ("model", "wanted"),
    [(PRO, Request(16)), (PRO, Request(16, gpu="h20-96", engine="node")), (V32, Request(8, gpu="h20-96"))],
)
def test_every_setting_of_a_plans_changes_is_in_its_commands(model: str, wanted: Request) -> None:
    plan = make_plan(*inventory_of(model), wanted, "MODEL")
    settings = [setting for change in plan.changes for setting in change.settings]
    assert settings
    for way in plan.ways:
        variables = [f"{name}={value}" for name, value in way.launch.environment.items()]
        for command in way.launch.commands:
            started = " ".join((*variables, command))
            assert [setting for setting in settings if setting not in started] == []
