"""What two pairs of specs differ in, said so that a person can act on it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from policy.spec import Field, ImageField, Specs


def spec_differences(one: tuple[str, Specs], other: tuple[str, Specs]) -> list[str]:
    """Return what differs between two named specs, first things first: "observation.q.low: actor -3, learner -2"."""
    (name, specs), (other_name, others) = one, other
    differences: list[str] = []
    for kind, mine, theirs in (
        ("observation", specs.observation.fields, others.observation.fields),
        ("image", specs.observation.images, others.observation.images),
        ("action", specs.action.fields, others.action.fields),
    ):
        names, other_names = ([field.name for field in fields] for fields in (mine, theirs))
        if names != other_names:
            differences.append(f"{kind} fields: {name} {names}, {other_name} {other_names}")
        by_name: dict[str, Field | ImageField] = {field.name: field for field in theirs}
        for field in mine:
            if field.name in by_name:
                differences += _attribute_differences(
                    f"{kind}.{field.name}", (name, field), (other_name, by_name[field.name])
                )
    return differences + _attribute_differences(
        "action", (name, specs.action), (other_name, others.action), ("gripper",)
    )


def _attribute_differences(
    what: str, one: tuple[str, Any], other: tuple[str, Any], attributes: Sequence[str] = ()
) -> list[str]:
    (name, mine), (other_name, theirs) = one, other
    return [
        f"{what}.{attribute}: {name} {getattr(mine, attribute)}, {other_name} {getattr(theirs, attribute)}"
        for attribute in attributes or [field.name for field in dataclasses.fields(mine)]
        if getattr(mine, attribute) != getattr(theirs, attribute)
    ]
