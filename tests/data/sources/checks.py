"""What every source must satisfy."""

from pathlib import Path

from delvm.data.prepare.prepare import prepare
from delvm.data.shards.reader import read_examples
from delvm.data.types import SPLITS, Example, RejectedItem


def read_all(source, split):
    """Task -> what its chunks yield, in order."""
    return {
        task: [each for chunk in chunks for each in source.read(split, task, chunk)]
        for task, chunks in source.chunks(split).items()
    }


def keys(source, split, task):
    return [e.key for e in read_all(source, split)[task] if isinstance(e, Example)]


def rejects(source, split, task):
    found = read_all(source, split).get(task, [])
    return {each.key: each.reason for each in found if isinstance(each, RejectedItem)}


def same(one, other):
    """Whether two lists of examples and rejects are the same."""
    return len(one) == len(other) and all(
        a == b
        if isinstance(a, RejectedItem) or isinstance(b, RejectedItem)
        else a.key == b.key
        and len(a.images) == len(b.images)
        and all((x == y).all() for x, y in zip(a.images, b.images, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def prepared(source, output: Path, splits=SPLITS):
    """Runs `prepare`; checks that the shards contain what the source yields."""
    manifests = prepare(source, output, splits, max_reject_fraction=1.0)
    assert (output / "contact_sheet.png").stat().st_size > 0
    for manifest in manifests:
        split, task = manifest.split, manifest.task
        read = [e for e in read_all(source, split)[task] if isinstance(e, Example)]
        assert same(list(read_examples(output, split, task)), read)
        assert manifest.count == len(read) and manifest.rejected == len(
            rejects(source, split, task)
        )
    return {(m.split, m.task): m for m in manifests}


def files_below(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
