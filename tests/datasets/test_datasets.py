import gzip
import hashlib
import math
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_propkernel.datasets import YACHT, load_csv, load_yacht

# SHA-256 of data.csv of the packaging it came through (uncompressed): the numbers are passed on unchanged.
YACHT_SHA256 = "dc2871f60f28086c6b12738fc053647f13b29d770013baaf6d3f5806e219b3cb"
# A copy of that packaging's folders beside the project or inside it.
OTHER_COPIES = [
    parent / "shared" / "data" / "uci" / "yacht" / "data.csv.gz" for parent in Path(__file__).resolve().parents[2:4]
]


@pytest.fixture
def table(tmp_path):
    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


class TestYacht:
    def test_shapes_and_dtype(self):
        x, y = load_yacht()
        assert x.shape == (308, 6) and y.shape == (308,)
        assert x.dtype == y.dtype == torch.float64
        assert x.is_contiguous() and y.is_contiguous()
        assert len(YACHT.feature_names) == len(YACHT.feature_means) == 6

    def test_numbers_are_passed_on_unchanged(self):
        data = resources.files("torch_propkernel.datasets").joinpath("yacht.csv.gz").read_bytes()
        assert hashlib.sha256(gzip.decompress(data)).hexdigest() == YACHT_SHA256
        x, y = load_yacht()
        for path in filter(Path.is_file, OTHER_COPIES):
            expected = np.loadtxt(path, delimiter=",")
            assert np.array_equal(torch.column_stack([x, y]).numpy(), expected)

    def test_adding_the_means_gives_the_published_design(self):
        x, y = load_yacht()
        published = (x + torch.tensor(YACHT.feature_means, dtype=torch.float64)).numpy()
        # 5e-5: half a unit of the fifth digit of the means, plus that of the shipped numbers.
        froude = 0.125 + 0.025 * np.arange(14)
        assert np.abs(published[:, 5:] - froude).min(axis=1).max() < 5e-5
        assert len(np.unique(published[:, :5].round(3), axis=0)) == 22
        resistance = (y + YACHT.target_mean).exp()
        # The published resistances run from 0.01 to 62.42, with two decimals.
        assert math.isclose(resistance.min(), 0.01, rel_tol=1e-4)
        assert math.isclose(resistance.max(), 62.42, rel_tol=1e-4)
        assert (resistance[resistance < 10] * 100 - (resistance[resistance < 10] * 100).round()).abs().max() < 0.1

    def test_columns_are_centered(self):
        x, y = load_yacht()
        assert x.mean(0).abs().max() < 1e-5 and y.mean().abs() < 1e-5  # the shipped numbers have five digits


class TestLoadCsv:
    @pytest.mark.parametrize("header", ["", "a,b,c\n"])
    @pytest.mark.parametrize("compress", [False, True])
    def test_last_column_is_the_target(self, table, header, compress):
        data = (header + "1,2,3\n4,5,6e-1\n").encode()
        x, y = load_csv(table(gzip.compress(data) if compress else data))
        assert x.tolist() == [[1, 2], [4, 5]] and y.tolist() == [3, 0.6]
        assert x.dtype == y.dtype == torch.float64

    @pytest.mark.parametrize("target, column", [("b", 1), (0, 0), (1, 1), (-3, 0), (None, 2)])
    def test_target(self, table, target, column):
        rows = [[1, 2, 3], [4, 5, 6]]
        x, y = load_csv(table("a,b,c\n1,2,3\n4,5,6\n"), target=target)
        assert y.tolist() == [row[column] for row in rows]
        assert x.tolist() == [row[:column] + row[column + 1 :] for row in rows]

    def test_spaces_blank_lines_byte_order_mark_and_quotes(self, table):
        x, y = load_csv(table(b'\xef\xbb\xbf"a, first", b\r\n 1 , 2\r\n\r\n"3",4\r\n'), target="a, first")
        assert x.tolist() == [[2], [4]] and y.tolist() == [1, 3]

    def test_delimiter(self, table):
        x, y = load_csv(table("1;2\n3;4\n"), delimiter=";")
        assert x.tolist() == [[1], [3]] and y.tolist() == [2, 4]

    @pytest.mark.parametrize(
        "text, message",
        [
            ("", "got an empty file"),
            ("\n\n", "got an empty file"),
            ("1\n2\n", "at least 2 columns .* got 1: '1'"),
            ("1;2\n3;4\n", "separated by ',', got 1: '1;2'"),
            ("1,2\n", "at least 2 rows of numbers, got 1"),
            ("a,b\n1,2\n", "at least 2 rows of numbers, got 1"),
            ("1,2\n3\n", "line 2: expected 2 columns, got 1"),
            ("1,2\n\n3,4,5\n", "line 3: expected 2 columns, got 3"),
            ("1,2\n3,\n", r"line 2, column 2: expected a finite number, got a missing value \(''\)"),
            ("a,b\n1,2\n?,4\n", r"line 3, column 1 \('a'\): .* got a missing value \('\?'\)"),
            ("1,2\n3,NaN\n", "line 2, column 2: .* missing value"),
            ("1,2\nNA,3\n", "line 2, column 1: .* missing value"),
            ("1,2\n3,inf\n", "line 2, column 2: expected a finite number, got 'inf'"),
            ("a,b\n1,2\nred,4\n", r"line 3, column 1 \('a'\): .* got 'red', which is not a number; encode categorical"),
            ("red,2\n3,4\n", "line 1, column 1: .* got 'red'"),
            (",a\n0,1\n1,2\n", "line 1: expected a name for every column .* none for column 1"),
            (b"1,2\n3,\xff\n", "expected text in UTF-8, got byte 0xff at 6"),
        ],
    )
    def test_refuses(self, table, text, message):
        with pytest.raises(ValueError, match=message):
            load_csv(table(text))

    @pytest.mark.parametrize(
        "text, target, message",
        [
            ("1,2\n3,4\n", "b", r"expected a column index as target \(the file has no header\), got 'b'"),
            ("a,b\n1,2\n3,4\n", "c", "names one column of .*, got 'c', which names 0"),
            ("a,a\n1,2\n3,4\n", "a", "got 'a', which names 2"),
            ("a,b\n1,2\n3,4\n", 2, "expected a target index from -2 to 1, got 2"),
            ("a,b\n1,2\n3,4\n", -3, "expected a target index from -2 to 1, got -3"),
        ],
    )
    def test_refuses_target(self, table, text, target, message):
        with pytest.raises(ValueError, match=message):
            load_csv(table(text), target=target)

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load_csv(tmp_path / "nothing.csv")
