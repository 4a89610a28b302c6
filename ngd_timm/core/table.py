"""Tables with a header, as CSV or with tabs."""

from __future__ import annotations

import csv
from pathlib import Path

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import require_regular


def read_table(path: Path, delimiter: str = ",") -> tuple[list[str], dict[str, dict[str, str]]]:
    """The columns of a UTF-8 file, and its rows by the words with which messages name them, all stripped.

    Raises:
        InputError: A file that can't be read, a column that is there twice, or a row with more or fewer cells than
            the header.
    """
    rows: dict[str, dict[str, str]] = {}
    try:
        require_regular(path)
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, delimiter=delimiter, skipinitialspace=True, strict=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
                raise InputError(f"{path}: has the column {twice[0]} twice")
            reader.fieldnames = names
            for row in reader:
                where = f"{path}, row {reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(f"{where}: must have {len(names)} cells, as the first row has")
                rows[where] = {name: cell.strip() for name, cell in row.items()}
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as a UTF-8 table ({error})") from None
    return names, rows
