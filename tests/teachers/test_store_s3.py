"""The store on an object store that speaks S3, over real HTTP; skipped where moto and s3fs are not installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_store import IDS, VIEWS, logits, manifest, write_shard, write_store

from understudy.errors import StoreError
from understudy.teachers.store import Store
from understudy.teachers.store.files import open_files
from understudy.teachers.store.maintenance import convert, merge
from understudy.teachers.store.writer import Writer

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of a server in this process."""
    import fsspec
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.filesystem("s3").mkdir("stores")
        try:
            yield "s3://stores"
        finally:
            server.stop()


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.randperm(len(IDS) * VIEWS)
    return IDS[order // VIEWS], order % VIEWS


def test_what_is_written_is_read(bucket: str) -> None:
    write_store(f"{bucket}/deep/one")
    store = Store(f"{bucket}/deep/one")
    store.check_files()
    ids, views = rows()
    found = store.outputs(store.lookup(ids, views)).logits
    assert found is not None and torch.equal(found, logits(ids, views))
    store.close()


def test_filling_goes_on(bucket: str) -> None:
    place = f"{bucket}/broken"
    writer = Writer(open_files(place), manifest())
    writer.begin()
    first, *rest = writer.missing()
    write_shard(writer, first)
    with pytest.raises(StoreError, match="not finished: 1 of 4"):
        Store(place)
    again = Writer(open_files(place), manifest())
    again.begin()
    assert again.missing() == rest
    for shard in rest:
        write_shard(again, shard)
    assert again.complete().complete


def test_damage_is_named(bucket: str) -> None:
    place = f"{bucket}/damaged"
    write_store(place)
    files = open_files(place)
    name = "train-11-40.logits.npy"
    data = files.read(name)
    files.write(name, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoreError, match=f"the checksum of {name} differs"):
        Store(place).check_files()
    files.delete(name)
    with pytest.raises(StoreError, match="Shard train-11-40 .* is damaged"):
        Store(place)


def test_stores_come_out_of_stores(bucket: str, tmp_path: Any) -> None:
    write_store(f"{bucket}/whole")
    assert merge(tmp_path / "copy", [f"{bucket}/whole"]).complete
    made = convert(f"{bucket}/whole", f"{bucket}/small", top_k=2, dtype="float16")
    assert made.complete and Store(f"{bucket}/small").samples == len(IDS)
