"""What a person can get wrong in rules beyond types: names, labels, shapes, bounds. Imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence

from skerry.decision.geometry import Point, area, crosses_itself
from skerry.decision.settings import CountRule, DecisionSettings, LineRule, RateRule, Rule, RuleSettings
from skerry.settings import Problem

_LEAST_AREA = 1e-6


def settings_problems(settings: DecisionSettings) -> list[Problem]:
    """What is wrong with settings that were changed from outside.

    Args:
        settings: of the module.
    """
    return rule_problems(settings.rules, settings.cameras, {})


def rule_problems(
    rules: Sequence[Rule],
    cameras: Collection[str],
    labels_by_camera: Mapping[str, Collection[str]],
    path: str = "$.rules",
    attributes_by_camera: Mapping[str, Collection[str]] | None = None,
) -> list[Problem]:
    """Everything wrong with rules whose types are right; empty when all is well.

    Of a rule that is not enabled only the name is looked at: it is addressed by it.

    Args:
        rules: parsed rules.
        cameras: the names of the cameras there are.
        labels_by_camera: what each camera's model can say; a camera that is missing is not checked.
        path: where the rules stand in the file.
        attributes_by_camera: the attributes that each camera's model gives; missing is not checked.

    Returns:
        (path, message) of each problem.
    """
    found: list[Problem] = []
    first: dict[str, int] = {}
    for n, rule in enumerate(rules):
        here = f"{path}[{n}]"
        if rule.name in first:
            before = f"{path}[{first[rule.name]}]"
            found.append(
                (f"{here}.name", f"expected a unique name, got '{rule.name}' as {before} (rename one)")
            )
        first.setdefault(rule.name, n)
        if not rule.enabled:
            continue
        if rule.camera not in cameras:
            found.append((f"{here}.camera", _unknown("camera", rule.camera, cameras)))
        found += _names(rule, here, labels_by_camera, attributes_by_camera or {})
        found += _shapes(rule, here)
        found += _bounds(rule, here)
    return found


def _names(
    rule: RuleSettings,
    here: str,
    labels_by_camera: Mapping[str, Collection[str]],
    attributes_by_camera: Mapping[str, Collection[str]],
) -> Iterator[Problem]:
    labels = labels_by_camera.get(rule.camera)
    if labels is not None:
        for n, label in enumerate(rule.labels):
            if label not in labels:
                yield f"{here}.labels[{n}]", _unknown("label of the camera's model", label, labels)
    attributes = attributes_by_camera.get(rule.camera)
    if rule.where is not None and attributes is not None and rule.where.attribute not in attributes:
        message = _unknown("attribute of the camera's model", rule.where.attribute, attributes)
        yield f"{here}.where.attribute", message


def _shapes(rule: Rule, here: str) -> Iterator[Problem]:
    if rule.zone is not None:
        yield from _zone(rule.zone, f"{here}.zone")
    line = rule.line if isinstance(rule, LineRule | RateRule) else None
    if line is not None:
        yield from _outside(line, f"{here}.line")
        if line[0] == line[1]:
            yield f"{here}.line", f"expected two different points, got {list(line[0])} twice"


def _zone(zone: Sequence[Point], here: str) -> Iterator[Problem]:
    yield from _outside(zone, here)
    if len(zone) < 3:
        yield here, f"expected at least 3 points, got {len(zone)}"
    elif crosses_itself(zone):
        yield (
            here,
            "expected a polygon whose edges do not cross or touch (give its corners in order around it)",
        )
    elif area(zone) < _LEAST_AREA:
        yield here, "expected a polygon with an area, got a sliver (move its corners apart)"


def _outside(points: Sequence[Point], here: str) -> Iterator[Problem]:
    for n, point in enumerate(points):
        if not all(0.0 <= v <= 1.0 for v in point):
            message = (
                f"expected a point inside the picture (0 to 1), got {list(point)} (use fractions, not pixels)"
            )
            yield f"{here}[{n}]", message


def _bounds(rule: Rule, here: str) -> Iterator[Problem]:
    if not isinstance(rule, CountRule | RateRule):
        return
    if rule.above is None and rule.below is None:
        yield here, "expected above or below, got neither (add the bound)"
        return
    if rule.above is not None and rule.hysteresis > rule.above:
        yield f"{here}.hysteresis", f"expected at most above ({rule.above:g}), got {rule.hysteresis:g}"
    if rule.above is not None and rule.below is not None and rule.below > rule.above:
        yield f"{here}.below", f"expected at most above ({rule.above:g}), got {rule.below:g}"


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    if near:
        return f"unknown {what} '{name}' (did you mean '{near[0]}'?)"
    names = sorted(known)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"unknown {what} '{name}' (known: {shown or 'none'})"
