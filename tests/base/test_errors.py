import copy
import inspect
import pickle
from collections.abc import Iterator

import pytest

from backend.base import errors
from backend.base.errors import InspectionError
from backend.base.messages import Fault, Notice, Phrase


def descendants(kind: type[InspectionError]) -> Iterator[type[InspectionError]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


ALL = sorted(descendants(InspectionError), key=lambda kind: kind.__name__)


def drawn() -> dict[str, str]:
    """Each class of the tree in the docstring, and its parent there."""
    parents: dict[str, str] = {}
    above = ["InspectionError"]
    for line in (inspect.getdoc(errors) or "").splitlines():
        branch, mark, rest = line.partition("── ")
        if mark:
            depth = (len(branch) + 3) // 4
            above[depth:] = [rest.partition(":")[0]]
            parents[above[depth]] = above[depth - 1]
    return parents


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert drawn() == {kind.__name__: kind.__mro__[1].__name__ for kind in ALL}


def test_each_error_has_a_code_of_its_own() -> None:
    assert not [kind.__name__ for kind in ALL if "code" not in vars(kind)]
    assert len({kind.code for kind in ALL}) == len(ALL)


def test_an_error_reads_as_its_code_and_its_values() -> None:
    assert str(errors.NoImages()) == "no_images"
    assert str(errors.TokenGridMismatch(got=(5, 11), expected=(8, 8), name="a.png")) == (
        "token_grid_mismatch(got=(5, 11), expected=(8, 8), name=a.png)"
    )


def test_messages_within_an_error_read_as_their_codes() -> None:
    why = Phrase("no_such_file", {"path": "w.pth"})
    assert str(errors.WeightsUnavailable(model="m", reason=why)) == (
        "weights_unavailable(model=m, reason=no_such_file(path=w.pth))"
    )
    faults = [Fault("PORT", "less_than_equal", {"le": 65535}), Fault("HOST", "missing")]
    assert str(errors.InvalidSettings(reason=faults)) == (
        "invalid_settings(reason=[PORT: less_than_equal(le=65535); HOST: missing])"
    )
    assert str(Notice("samples_left_out", {"n": 1, "reasons": [errors.EmptyFile(name="a")]})) == (
        "samples_left_out(n=1, reasons=[empty_file(name=a)])"
    )


@pytest.mark.parametrize("copied", [copy.copy, lambda err: pickle.loads(pickle.dumps(err))], ids=["copy", "pickle"])
def test_an_error_keeps_its_values_on_the_way_between_processes(copied: object) -> None:
    assert callable(copied)
    twin = copied(errors.InvalidValue(field="k", value=0, expected=">= 1"))
    assert type(twin) is errors.InvalidValue and twin.values == {"field": "k", "value": 0, "expected": ">= 1"}
