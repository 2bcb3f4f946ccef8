import gzip
import hashlib
import math
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_propkernel.datasets import YACHT, load_csv, load_yacht
from torch_propkernel.datasets.csv import read_csv

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

    @pytest.mark.parametrize(
        "text",
        [
            "1;2;3\n4;5;6\n",
            "1\t2\t3\n4\t5\t6\n",
            "1, 2, 3\n4,5,6\n",
            "  1   2 3  \n\n4 \t5  6\n",
            "a, 1;b;c\n1;2;3\n4;5;6\n",  # a comma in a name
            '"a;1","b;2","c d"\n1,2,3\n4,5,6\n',
            "the a,the b,the c\n1,2,3\n4,5,6\n",
            "1,2,3\r4,5,6\r",  # lines end as they did on old Macs
        ],
    )
    def test_the_separator_is_found(self, table, text):
        x, y = load_csv(table(text))
        assert x.tolist() == [[1, 2], [4, 5]] and y.tolist() == [3, 6]

    @pytest.mark.parametrize(("delimiter", "text"), [(";", "1;2\n3;4\n"), (" ", "1  2\n3 4\n"), ("|", "1|2\n3|4\n")])
    def test_delimiter(self, table, delimiter, text):
        x, y = load_csv(table(text), delimiter=delimiter)
        assert x.tolist() == [[1], [3]] and y.tolist() == [2, 4]

    def test_decimal_commas_are_not_taken_for_separators(self, table):
        with pytest.raises(ValueError, match=r"line 1, column 1: .* got '1,5', write it with a decimal point"):
            load_csv(table("1,5;2,5\n3,5;4,5\n"))

    @pytest.mark.parametrize(
        "drop, target, columns",
        [
            (["when"], None, [0, 2, 3]),
            (["when", "price"], None, [0, 2]),  # the last column that is left
            ([1, -1], "a", [2, 0]),
            (["1", "3"], "2", [0, 2]),  # indices in the file, whatever is left out
        ],
    )
    def test_columns_are_left_out_whatever_they_hold(self, table, drop, target, columns):
        path = table("a,when,b,price\n1,2024-01-31,2,10\n3,,4,20\n")
        values = [[1, None, 2, 10], [3, None, 4, 20]]
        x, y = load_csv(path, target, drop=drop)
        assert torch.column_stack([x, y]).tolist() == [[row[column] for column in columns] for row in values]

    def test_a_column_that_is_left_out_is_not_missing(self, table):
        found = read_csv(table("a,b,c\n1,,2\n,5,6\n"), drop=["b"], drop_missing=True)
        assert found.values.tolist() == [[1, 2]] and found.lines == (2,) and found.incomplete == (3,)

    def test_columns_that_are_asked_for_by_name(self, table):
        path = table("when,a,b,a price\nMonday,1,2,\n")
        assert read_csv(path, only=["b", "a"]).values.tolist() == [[1, 2]]
        with pytest.raises(ValueError, match="got 'Monday'"):
            read_csv(path, only=["b", "c"])  # not all of them are there: all columns are read

    @pytest.mark.parametrize("first", ["0,1,2", "3,4,5,6", ",0,1,2", "0,1"])
    def test_a_first_row_that_may_be_a_header_is_refused(self, table, first):
        size = first.count(",") + 1
        path = table(f"{first}\n" + "\n".join(",".join(f"{7 * i + j}.5" for j in range(size)) for i in range(3)))
        with pytest.raises(
            ValueError, match="line 1: expected names or data, got .*, which may be either: say --header"
        ):
            load_csv(path)
        if not first.startswith(","):
            assert len(load_csv(path, header=False)[1]) == 4
            assert len(load_csv(path, header=True)[1]) == 3
            return
        with pytest.raises(ValueError, match=r"none for column 1; an index column\? leave it out: --drop=-4, or"):
            load_csv(path, header=True)
        assert load_csv(path, "2", header=True, drop=[-4])[0].tolist() == [[1.5, 2.5], [8.5, 9.5], [15.5, 16.5]]

    @pytest.mark.parametrize("first", ["1,2,3", "0,2,1", "0.0,1,2", "5,6,8,9"])
    def test_other_first_rows_of_numbers_are_data(self, table, first):
        assert len(load_csv(table(f"{first}\n" + first))[1]) == 2

    def test_a_first_row_of_numbers_written_oddly_is_no_header(self, table):
        with pytest.raises(ValueError, match=r"line 1, column 1: .* got '1,029', write it without marks"):
            load_csv(table("1,029;5 %\n2;3\n"))
        assert len(load_csv(table("2024-01-31,2024-02-29\n1,2\n3,4\n"))[1]) == 2  # dates may be names

    @pytest.mark.parametrize(
        "cell, todo",
        [
            ("1_000", "write it without marks between its digits"),
            ("1,029.8", "write it without marks between its digits"),
            ("1 029", "write it without marks between its digits"),
            ("-1.029,8", "write it with a decimal point and without marks between its digits"),
            ("5 %", "a percentage: write the number alone"),
            ("2024-01-31", "a date or a time: write a number, .* or leave the column out"),
            ("31.12.2024", "a date or a time"),
            ("1/31/24 12:00", "a date or a time"),
            ("12:30", "a date or a time"),
            ("1e300", "larger than 1e\\+100: rescale the column, or leave the cell empty"),
            ("-1e999", "larger than 1e\\+100"),
            ("inf", "if it stands for a missing value, leave the cell empty"),
            ("-Infinity", "if it stands for a missing value"),
            ("12345678901234567891", "more digits than double precision holds; an identifier\\? leave the column out"),
            ("A-17", "which is not a number; encode categorical columns first, or leave the column out"),
            ("0x1F", "which is not a number"),
            ("\u0663", "which is not a number"),  # a digit, and to python's float a number
            ("5 kg", "which is not a number"),
        ],
    )
    def test_a_cell_that_is_no_number_gets_a_remedy(self, table, cell, todo):
        with pytest.raises(ValueError, match=rf"line 3, column 2 \('b'\): .* got '{re.escape(cell)}', {todo}"):
            load_csv(table(f"a;b\n1;2\n3;{cell}\n"))

    @pytest.mark.parametrize(
        "cell", ["9007199254740993.0", "4503599627370497", "18014398509481984", "007", "+.5E-3", "1."]
    )
    def test_numbers(self, table, cell):
        assert load_csv(table(f"a;b\n1;2\n3;{cell}\n"))[1][1] == float(cell)

    @pytest.mark.parametrize(
        "text, message",
        [
            ("", "got an empty file"),
            ("\n\n", "got an empty file"),
            ("1\n2\n", "at least 2 columns .* got 1: '1'"),
            ("1,2\n", "at least 2 rows of numbers, got 1"),
            ("a,b\n1,2\n", "at least 2 rows of numbers, got 1"),
            ("1,2\n3\n", "line 2: expected 2 columns separated by ',', got 1"),
            ("1,2\n\n3,4,5\n", "line 3: expected 2 columns separated by ',', got 3"),
            ("1,2\n3,\n", r"line 2, column 2: expected a finite number, got a missing value \(''\)"),
            ("a,b\n1,2\n?,4\n", r"line 3, column 1 \('a'\): .* got a missing value \('\?'\)"),
            ("1,2\n3,NaN\n", "line 2, column 2: .* missing value"),
            ("1,2\nNA,3\n", "line 2, column 1: .* missing value"),
            ("1,2\n3,red\ninf,blue\n", r"line 2, column 2: .* got 'red', .* column 2: 2 of 3 cells are texts"),
            ("1|2\n3|4\n", r"at least 2 columns separated by ',', got 1: '1\|2'"),
            ('1,"2\n' + "3,4\n" * 40_000, "expected a table, got field larger than field limit"),
            (gzip.compress(b"1,2\n3,4\n", mtime=0)[:-4], "expected a whole gzip file, got a damaged one"),
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
            ("1,2\n3,4\n", "b", r"expected the index of the target \(the file has no header\), got 'b'"),
            ("a,b\n1,2\n3,4\n", "c", "names one column of .*, got 'c', which names 0"),
            ("a,a\n1,2\n3,4\n", "a", "got 'a', which names 2"),
            ("a,b\n1,2\n3,4\n", 2, "expected an index of the target from -2 to 1, got 2"),
            ("a,b\n1,2\n3,4\n", -3, "expected an index of the target from -2 to 1, got -3"),
        ],
    )
    def test_refuses_target(self, table, text, target, message):
        with pytest.raises(ValueError, match=message):
            load_csv(table(text), target=target)

    @pytest.mark.parametrize(
        "drop, target, message",
        [
            (["d"], None, "expected a column to drop that names one column of .*, got 'd', which names 0"),
            ([3], None, "expected an index of the column to drop from -3 to 2, got 3"),
            (["c"], "c", "expected a target that is not left out, got 'c'"),
            (["a", "b"], None, "expected at least 2 columns separated by ',', got 1 of 3 that are not left out"),
        ],
    )
    def test_refuses_to_drop(self, table, drop, target, message):
        with pytest.raises(ValueError, match=message):
            load_csv(table("a,b,c\n1,2,3\n4,5,6\n"), target, drop=drop)

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load_csv(tmp_path / "nothing.csv")
