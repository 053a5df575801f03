"""Tables in the layout of the Hugging Face hub: from a local folder of parquet files, or through `datasets`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from understudy.data.sources._columns import Feature
from understudy.data.sources._extras import need
from understudy.errors import DataError, suggestion

_FILE = re.compile(
    r"(?P<split>.+?)(-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?(-[0-9a-f]{16})?\.parquet"
)
_HEAD = 16


class HubTables(Protocol):
    """The splits of one data set."""

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits."""

    def features(self, splits: Sequence[str]) -> dict[str, Feature]:
        """Return column -> description, the same in all of `splits`."""

    def column(self, split: str, name: str) -> Any:
        """Return a column as a pyarrow ChunkedArray, images still encoded."""

    def head(self, split: str, name: str) -> Any:
        """Return the first few cells of a column, without reading all of it."""

    def mapped(self, splits: Sequence[str]) -> Any:
        """Return the rows of `splits`, one after another, as a memory-mapped `datasets.Dataset`."""


@dataclass(frozen=True)
class ParquetFolder:
    """Parquet files of a local folder, read directly: no copy is written anywhere."""

    files: Mapping[str, Sequence[Path]]
    what: str

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits."""
        return list(self.files)

    def features(self, splits: Sequence[str]) -> dict[str, Feature]:
        """Return the columns' descriptions from the files' metadata, or from their types where there are none."""
        common: dict[str, Feature] | None = None
        for split in splits:
            for path in self.files[split]:
                features = features_of(open_parquet(path).schema_arrow)
                if common is None:
                    common, first = features, path
                elif features != common:
                    differing = sorted(
                        name
                        for name in {*features, *common}
                        if features.get(name) != common.get(name)
                    )
                    raise DataError(
                        f"'{path}' and '{first}' describe the column '{differing[0]}' differently: "
                        f"{_brief(features.get(differing[0]))} and {_brief(common.get(differing[0]))}."
                    )
        return common or {}

    def column(self, split: str, name: str) -> Any:
        """Read one column of one split."""
        import pyarrow as pa

        parts = []
        for path in self.files[split]:
            try:
                parts.append(open_parquet(path).read(columns=[name]).column(name))
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"'{path}' cannot be read: {error}.") from error
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], parts[0].type)

    def head(self, split: str, name: str) -> Any:
        """Return the first few cells of a column."""
        batches = open_parquet(self.files[split][0]).iter_batches(batch_size=_HEAD, columns=[name])
        return next(batch.column(name) for batch in batches)

    def mapped(self, splits: Sequence[str]) -> Any:
        """Let `datasets` convert the files to Arrow in its own cache."""
        need("datasets", "Reading parquet larger than the memory limit")
        import datasets

        paths = [str(path) for split in splits for path in self.files[split]]
        try:
            return datasets.load_dataset("parquet", data_files={"rows": paths}, split="rows")
        except Exception as error:
            # A full disk, damaged rows: `datasets` has errors of its own for them.
            raise DataError(
                f"{self.what} is larger than memory_limit_mb and could not be written to the cache of `datasets`: "
                f"{error}. Make room there (HF_HOME says where it is), or raise memory_limit_mb."
            ) from error


@dataclass(frozen=True)
class HubDataset:
    """A `datasets.DatasetDict`."""

    tables: Any
    what: str

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits."""
        return list(self.tables)

    def features(self, splits: Sequence[str]) -> dict[str, Feature]:
        """Return the columns' descriptions."""
        described = [self.tables[split].features.to_dict() for split in splits]
        for split, features in zip(splits, described, strict=True):
            if features != described[0]:
                raise DataError(
                    f"{self.what} has other columns in the split '{split}' than in '{splits[0]}': "
                    f"{', '.join(features)} and {', '.join(described[0])}."
                )
        return dict(described[0])

    def column(self, split: str, name: str) -> Any:
        """Return one column of one split."""
        return self.tables[split].select_columns([name]).with_format("arrow")[:].column(name)

    def head(self, split: str, name: str) -> Any:
        """Return the first few cells of a column."""
        rows = self.tables[split].select_columns([name]).with_format("arrow")
        return rows[:_HEAD].column(name)

    def mapped(self, splits: Sequence[str]) -> Any:
        """Join the splits without copying."""
        import datasets

        return datasets.concatenate_datasets([self.tables[split] for split in splits])


def open_hub(path: str, config: str | None, revision: str | None) -> HubTables:
    """Open a local folder in hub layout, or a data set of the hub by name.

    Raises:
        DataError: no such folder, no parquet files in it, a shard missing, a hub name that cannot be loaded.
    """
    place = Path(path).expanduser()
    if place.exists():
        return ParquetFolder(_parquet_files(place, config), f"'{path}'")
    if path.startswith(("/", ".", "~")) or path.count("/") > 1 or path.endswith(".parquet"):
        raise DataError(f"The folder '{path}' does not exist.")
    return HubDataset(_download(path, config, revision), f"'{path}'")


def _download(path: str, config: str | None, revision: str | None) -> Any:
    need("datasets", "Loading from the Hugging Face hub")
    import datasets

    try:
        tables = datasets.load_dataset(path, config, revision=revision)
    except Exception as error:
        # Offline, unknown names and missing configurations come as errors of several libraries.
        reason = str(error).strip().rstrip(".").split("\n")[0]
        raise DataError(
            f"The data set '{path}'{f' ({config})' if config else ''} could not be loaded from the Hugging Face "
            f"hub: {reason}. "
            "There is no local folder of that name either. Check the name and the connection; without one, "
            "fetch it elsewhere "
            f"('hf download --repo-type dataset {path} --local-dir FOLDER') and give the folder as `path`."
        ) from error
    return tables


def _parquet_files(place: Path, config: str | None) -> dict[str, list[Path]]:
    """Return split -> files, in the order of their shards."""
    if place.is_file():
        return {"train": [place]}
    if config is not None:
        configs = sorted(
            {path.parent.relative_to(place).parts[0] for path in place.glob("*/**/*.parquet")}
        )
        if config not in configs:
            raise DataError(
                f"'{place}' has no configuration '{config}'. {suggestion(config, configs)}"
            )
        place = place / config
    direct = sorted(place.glob("*.parquet")) or sorted((place / "data").glob("*.parquet"))
    nested = sorted(place.glob("*/*.parquet"))
    if not direct and not nested:
        deeper = sorted({path.relative_to(place).parts[0] for path in place.glob("*/*/*.parquet")})
        hint = (
            f"Its subfolders {', '.join(deeper)} look like configurations: choose one with `config`."
            if deeper
            else "Expected files such as train-00000-of-00001.parquet. For images in class folders "
            "use the source 'folder', for CSV or JSONL the source 'table'."
        )
        raise DataError(f"'{place}' holds no parquet files. {hint}")
    shards: dict[str, dict[int, Path]] = {}
    total: dict[str, int] = {}
    for path in direct or nested:
        match = _FILE.fullmatch(path.name)
        assert match is not None, "every name that ends in .parquet matches"
        split, shard = match["split"], int(match["shard"] or 0)
        if split.isdigit():
            # The hub's automatic conversion writes SPLIT/0000.parquet.
            split, shard = path.parent.name, int(split)
        elif not direct:
            raise DataError(
                f"'{place}' holds parquet files only in subfolders: "
                f"{', '.join(sorted({p.parent.name for p in nested}))}. "
                "Choose one with `config`."
            )
        if shard in shards.setdefault(split, {}):
            raise DataError(
                f"'{shards[split][shard]}' and '{path}' are both part {shard} of the split '{split}'."
            )
        shards[split][shard] = path
        total[split] = max(total.get(split, 0), int(match["shards"] or 0), shard + 1)
    for split, found in shards.items():
        absent = sorted(set(range(total[split])) - set(found))
        if absent:
            raise DataError(
                f"The split '{split}' in '{place}' should have {total[split]} parquet files, but part "
                f"{absent[0]} is missing."
            )
    return {split: [found[shard] for shard in sorted(found)] for split, found in shards.items()}


def open_parquet(path: Path) -> Any:
    """Open a parquet file; raises `DataError` with its name when it is damaged."""
    need("pyarrow", "Reading parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"'{path}' is no readable parquet file: {error}.") from error


def features_of(schema: Any) -> dict[str, Feature]:
    """Read the description that `datasets` leaves in a parquet file, or derive one from the types."""
    import pyarrow as pa

    described: dict[str, Feature] = {}
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is not None:
        described = json.loads(stored).get("info", {}).get("features") or {}
    features: dict[str, Feature] = {}
    for column in schema:
        kind = column.type
        if column.name in described:
            features[column.name] = described[column.name]
        elif (
            pa.types.is_binary(kind)
            or pa.types.is_large_binary(kind)
            or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
        ):
            features[column.name] = {"_type": "Image"}
        else:
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            features[column.name] = {"_type": "Value", "dtype": "string" if text else str(kind)}
    return features


def _brief(feature: Feature | None) -> str:
    if feature is None:
        return "absent"
    text = json.dumps(feature)
    return text if len(text) < 200 else text[:197] + "..."
