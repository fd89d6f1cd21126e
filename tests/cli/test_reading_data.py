"""Data as commands read them: every kind of file gives the numbers that were written to it."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from riemae.cli import delimited
from riemae.cli.builtin import NAMES
from riemae.cli.options import Reading
from riemae.cli.output import write_columns
from riemae.cli.sources import find, read
from riemae.exceptions import DataError, FileError, NonFiniteError, OptionError, RiemaeError

TABLE = "name;height;width;kind\na;1;2.5;x\nb;3;4e1;y\nc;-5;.5;x\n"
VALUES = [[1, 2.5], [3, 40], [-5, 0.5]]
NAMED = Reading(labels="kind", index="name")


def written(path, text, **options):
    path.write_text(text, encoding="utf-8", **options)
    return str(path)


class TestText:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_delimiters(self, tmp_path, delimiter):
        found = read(written(tmp_path / "t.csv", TABLE.replace(";", delimiter)), NAMED)
        np.testing.assert_array_equal(found.values, VALUES)
        assert found.columns == ("height", "width")
        assert (found.labels, found.label_name) == (["x", "y", "x"], "kind")
        assert (found.rows, found.index_name) == (["a", "b", "c"], "name")

    def test_tsv_may_hold_commas(self, tmp_path):
        path = written(tmp_path / "t.tsv", "a, or b\tkind, and more\n1\tx,y,z\n2\tx\n")
        found = read(path, Reading(labels="kind, and more"))
        assert found.labels == ["x,y,z", "x"]

    def test_packed_with_a_mark_of_byte_order_and_windows_line_ends(self, tmp_path):
        path = tmp_path / "t.csv.gz"
        path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode()))
        found = read(str(path), NAMED)
        np.testing.assert_array_equal(found.values, VALUES)
        assert found.rows == ["a", "b", "c"]

    def test_quoted_cells_hold_delimiters_and_line_breaks(self, tmp_path):
        path = written(tmp_path / "t.csv", 'x,kind\n1,"a, b"\n2,"two\nlines"\n')
        assert read(path, Reading(labels="kind")).labels == ["a, b", "two\nlines"]

    def test_without_a_header(self, tmp_path):
        found = read(written(tmp_path / "t.csv", "1,2\n3,4\n"), Reading())
        np.testing.assert_array_equal(found.values, [[1, 2], [3, 4]])
        assert found.columns == ("x1", "x2")

    def test_a_first_column_without_a_name_holds_the_names_of_rows(self, tmp_path):
        # pandas and R write them so; as numbers they would be one more column of data.
        found = read(written(tmp_path / "t.csv", ",u,v\n7,1,2\n8,3,4\n"), Reading())
        np.testing.assert_array_equal(found.values, [[1, 2], [3, 4]])
        assert found.rows == ["7", "8"]

    def test_columns_are_chosen_and_left_out(self, tmp_path):
        path = written(tmp_path / "t.csv", TABLE)
        assert read(path, Reading(columns=("width",))).values[:, 0].tolist() == [2.5, 40, 0.5]
        left = read(path, Reading(exclude=("name", "kind", "height")))
        assert left.columns == ("width",)
        model = read(path, NAMED, wanted=("width", "height"))
        assert model.values.tolist() == [row[::-1] for row in VALUES]

    def test_numeric_labels_are_labels(self, tmp_path):
        path = written(tmp_path / "t.csv", "x,digit\n0.5,7\n1.5,3\n")
        found = read(path, Reading(labels="digit"))
        assert found.labels == ["7", "3"]
        assert found.columns == ("x",)

    def test_missing_rows_go_with_their_labels(self, tmp_path):
        cells = "".join(f"{gap},1,bad\n" for gap in ("", "NA", "nan", "NULL", "N/A"))
        path = written(tmp_path / "t.csv", f"u,v,kind\n1,2,first\n{cells}3,4,last\n")
        found = read(path, Reading(labels="kind", drop_missing=True))
        assert found.values.tolist() == [[1, 2], [3, 4]]
        assert found.labels == ["first", "last"]
        assert found.rows == ["0", "6"]
        assert found.dropped == 5
        with pytest.raises(NonFiniteError, match=r"5 missing \(NaN\) in 5 of 7 rows, in 'u'"):
            read(path, Reading(labels="kind"))

    @pytest.mark.parametrize("piece", [1, 2, 3, 100])
    def test_pieces_leave_no_seam(self, tmp_path, monkeypatch, piece):
        monkeypatch.setattr(delimited, "_PIECE", piece)
        path = written(tmp_path / "t.csv", TABLE + "d;6;zwei;y\n")
        with pytest.raises(DataError, match=r"'width'.* 'zwei' in row 4\."):
            read(path, NAMED)
        path = written(tmp_path / "t.csv", TABLE)
        np.testing.assert_array_equal(read(path, NAMED).values, VALUES)

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("", "empty"),
            ("u,v\n1,2\n3\n", "2 cells in every row, got 1 in row 2"),
            ("u,v\n", "at least one row"),
            ("u,u\n1,2\n", "'u' twice"),
            ("u,v\n1,inf\n", "infinite one in row 1"),
        ],
    )
    def test_what_is_no_table(self, tmp_path, text, match):
        with pytest.raises(RiemaeError, match=match):
            read(written(tmp_path / "t.csv", text), Reading())

    def test_another_encoding(self, tmp_path):
        (tmp_path / "t.csv").write_bytes("größe\n1\n".encode("latin-1"))
        with pytest.raises(FileError, match="UTF-8"):
            read(str(tmp_path / "t.csv"), Reading())


class TestParquet:
    def test_round_trip(self, tmp_path):
        columns = {"name": ["a", "b"], "u": [1.5, 2.5], "n": [1, 2], "kind": ["x", "y"]}
        path = write_columns(tmp_path / "t.parquet", columns)
        found = read(str(path), NAMED)
        assert found.values.tolist() == [[1.5, 1], [2.5, 2]]
        assert (found.rows, found.labels) == (["a", "b"], ["x", "y"])

    def test_gaps_and_text(self, tmp_path):
        path = write_columns(tmp_path / "t.parquet", {"u": [1.0, None], "t": ["x", None]})
        with pytest.raises(DataError, match=r"numbers in the column 't', got 'x' in row 1"):
            read(str(path), Reading())
        with pytest.raises(NonFiniteError, match="1 missing"):
            read(str(path), Reading(labels="t"))

    def test_the_index_of_pandas(self, tmp_path):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"u": [1.0, 2.0]}, index=["first", "second"])
        frame.to_parquet(tmp_path / "t.parquet")
        found = read(str(tmp_path / "t.parquet"), Reading())
        assert found.values.tolist() == [[1.0], [2.0]]
        assert found.rows == ["first", "second"]

    def test_something_else(self, tmp_path):
        with pytest.raises(FileError, match="a parquet file"):
            read(written(tmp_path / "t.parquet", "u\n1\n"), Reading())


class TestArrays:
    def test_npy(self, tmp_path):
        x = np.arange(24.0).reshape(2, 3, 4)
        np.save(tmp_path / "x.npy", x)
        np.testing.assert_array_equal(read(str(tmp_path / "x.npy"), Reading()).values, x)
        np.save(tmp_path / "x.npy", np.arange(3))
        assert read(str(tmp_path / "x.npy"), Reading()).values.tolist() == [[0], [1], [2]]

    def test_npz_and_its_labels(self, tmp_path):
        path = str(tmp_path / "x.npz")
        np.savez(path, x=np.eye(2), y=np.array(["u", "v"]), other=np.ones((2, 1)))
        found = read(path, Reading(labels="y"))
        np.testing.assert_array_equal(found.values, np.eye(2))
        assert found.labels == ["u", "v"]
        assert read(path, Reading(key="other")).values.tolist() == [[1], [1]]
        with pytest.raises(OptionError, match="Did you mean 'other'"):
            read(path, Reading(key="othr"))
        np.savez(path, a=np.eye(2), b=np.eye(2))
        with pytest.raises(OptionError, match="--key a or --key b"):
            read(path, Reading())

    def test_labels_in_a_file_of_their_own(self, tmp_path):
        np.save(tmp_path / "x.npy", np.eye(2))
        for path in (tmp_path / "l.txt", tmp_path / "l.npy"):
            if path.suffix == ".npy":
                np.save(path, np.array(["u", "v"]))
            else:
                path.write_text("u\nv\n")
            assert read(str(tmp_path / "x.npy"), Reading(labels=str(path))).labels == ["u", "v"]
        (tmp_path / "l.txt").write_text("u\n")
        with pytest.raises(DataError, match="2 labels, got 1"):
            read(str(tmp_path / "x.npy"), Reading(labels=str(tmp_path / "l.txt")))

    @pytest.mark.parametrize("name", ["x.npy", "x.npz"])
    def test_objects_are_never_unpickled(self, tmp_path, name):
        class Bomb:
            def __reduce__(self):
                return Path.touch, (tmp_path / "exploded",)

        objects = np.array([[Bomb()]], dtype=object)
        save = np.save if name == "x.npy" else np.savez
        save(tmp_path / name, objects, allow_pickle=True)
        with pytest.raises(FileError):
            read(str(tmp_path / name), Reading())
        assert not (tmp_path / "exploded").exists()

    def test_missing_numbers(self, tmp_path):
        x = np.ones((3, 2, 2))
        x[1, 0, 0] = np.nan
        np.save(tmp_path / "x.npy", x)
        with pytest.raises(NonFiniteError, match=r"1 missing \(NaN\) in 1 of 3 rows\. "):
            read(str(tmp_path / "x.npy"), Reading())
        assert read(str(tmp_path / "x.npy"), Reading(drop_missing=True)).rows == ["0", "2"]


class TestCells:
    @pytest.fixture
    def path(self, tmp_path):
        anndata = pytest.importorskip("anndata")
        pandas = pytest.importorskip("pandas")
        sparse = pytest.importorskip("scipy.sparse")
        counts = np.array([[0, 2, 1], [3, 0, 0]], dtype=np.float32)
        adata = anndata.AnnData(
            sparse.csr_matrix(counts),
            obs=pandas.DataFrame({"type": pandas.Categorical(["T", "B"])}, index=["c1", "c2"]),
            var=pandas.DataFrame(index=["g1", "g2", "g3"]),
        )
        adata.layers["twice"] = 2 * counts
        adata.write_h5ad(tmp_path / "cells.h5ad")
        return str(tmp_path / "cells.h5ad")

    def test_sparse_counts_and_layers(self, path):
        found = read(path, Reading(labels="type"))
        np.testing.assert_array_equal(found.values, [[0, 2, 1], [3, 0, 0]])
        assert found.columns == ("g1", "g2", "g3")
        assert (found.rows, found.labels) == (["c1", "c2"], ["T", "B"])
        layer = read(path, Reading(layer="twice"), wanted=("g3", "g1"))
        np.testing.assert_array_equal(layer.values, [[2, 0], [0, 6]])

    def test_unknown_layer_and_label(self, path):
        with pytest.raises(OptionError, match="Did you mean 'twice'"):
            read(path, Reading(layer="twise"))
        with pytest.raises(OptionError, match="Did you mean 'type'"):
            read(path, Reading(labels="types"))


class TestImages:
    def test_grey_ones_in_subfolders(self, tmp_path):
        for i, kind in enumerate(("cat", "dog")):
            (tmp_path / kind).mkdir()
            pixels = np.full((2, 3), 51 * (i + 1), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / "a.png")
        (tmp_path / "notes.txt").write_text("not an image")
        found = read(str(tmp_path), Reading())
        assert found.values.shape == (2, 1, 2, 3)
        np.testing.assert_allclose(found.values[:, 0, 0, 0], [0.2, 0.4])
        assert found.labels == ["cat", "dog"]
        assert found.picture == (1, 2, 3)

    def test_colours(self, tmp_path):
        pixels = np.zeros((2, 2, 3), dtype=np.uint8)
        pixels[..., 1] = 255
        Image.fromarray(pixels).save(tmp_path / "a.png")
        found = read(str(tmp_path), Reading())
        assert found.values[0, :, 0, 0].tolist() == [0, 1, 0]
        assert found.labels is None

    def test_sixteen_bits(self, tmp_path):
        Image.fromarray(np.full((2, 2), 51 * 256, dtype=np.uint16)).save(tmp_path / "a.png")
        np.testing.assert_allclose(read(str(tmp_path), Reading()).values, 0.2)

    def test_different_sizes_and_other_things(self, tmp_path):
        for i in (2, 3):
            Image.fromarray(np.zeros((i, i), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        with pytest.raises(DataError, match=r"one size, 2 x 2 as 2\.png, got 3 x 3 in 3\.png"):
            read(str(tmp_path), Reading())
        (tmp_path / "3.png").write_text("nothing")
        with pytest.raises(FileError, match="an image"):
            read(str(tmp_path), Reading())


class TestNames:
    # The images take seconds to be read; tests/datasets has them.
    @pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("_images")])
    def test_every_data_set_has_finite_rows(self, name):
        found = read(name, Reading())
        assert len(found) > 10
        assert np.isfinite(found.values).all()

    def test_the_seed_draws_them(self):
        assert (
            read("swiss-roll", Reading(), seed=1).values[0]
            != read("swiss_roll", Reading()).values[0]
        ).any()

    def test_digits_are_images(self):
        found = read("digits", Reading())
        assert found.picture == (1, 8, 8)
        assert set(found.labels) == set("0123456789")
        assert (found.values.min(), found.values.max()) == (0, 1)

    def test_a_model_of_the_same_name_does_not_hide_them(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "digits").mkdir()
        (tmp_path / "digits" / "checkpoint.json").write_text("{}")
        assert len(read("digits", Reading())) == 1797

    def test_a_file_comes_before_a_data_set(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        np.save(tmp_path / "wine", np.ones((2, 2)))
        assert find("wine.npy", Reading()).array.shape == (2, 2)


class TestDecimalComma:
    """Numbers as spreadsheets write them where the comma divides whole numbers from fractions."""

    TEXT = "name;height;width\na;1,5;2\nb;-,5;4e1\nc;NA;.\n"

    def test_is_read_when_it_is_named(self, tmp_path):
        path = written(tmp_path / "t.csv", self.TEXT)
        found = read(path, Reading(index="name", decimal=",", drop_missing=True))
        np.testing.assert_array_equal(found.values, [[1.5, 2], [-0.5, 40]])
        assert found.kept.tolist() == [True, True, False]
        bare = written(tmp_path / "bare.csv", "1,5;2\n3;4,25\n")
        found = read(bare, Reading(decimal=","))
        np.testing.assert_array_equal(found.values, [[1.5, 2], [3, 4.25]])

    def test_is_offered_where_it_would_help(self, tmp_path):
        with pytest.raises(DataError, match="If that is a fraction, say --decimal ,;"):
            read(written(tmp_path / "t.csv", self.TEXT), Reading(index="name"))
        points = written(tmp_path / "p.csv", "u;v\n1.5;2\n3;4\n")
        with pytest.raises(DataError, match=r"say --decimal \.;"):
            read(points, Reading(decimal=","))
        with pytest.raises(DataError, match="--labels"):  # no number in any country
            read(written(tmp_path / "w.csv", "u;v\n1,2,3;2\n3;4\n"), Reading())

    def test_is_remembered_for_files_like_those_of_the_training(self, tmp_path):
        then = Reading(decimal=",")
        path = written(tmp_path / "t.csv", "u;v\n1,5;2\n")
        assert read(path, Reading(usual=then)).values.tolist() == [[1.5, 2]]
        codes = written(tmp_path / "codes.csv", "z1,z2\n1.5,2\n")
        assert read(codes, Reading(usual=then)).values.tolist() == [[1.5, 2]]
        points = written(tmp_path / "p.csv", "u;v\n1.5;2\n")
        assert read(points, Reading(usual=then, decimal=".")).values.tolist() == [[1.5, 2]]


class TestNothingLeft:
    def test_each_kind_says_what_it_is(self, tmp_path):
        empty = written(tmp_path / "h.csv", "u,v\n")
        with pytest.raises(DataError, match=r"got no rows\. Is it the right file"):
            read(empty, Reading())
        holes = written(tmp_path / "n.csv", "u,v\n1,\n2,\n")
        with pytest.raises(NonFiniteError, match="No row is complete: leave .* --exclude v"):
            read(holes, Reading())
        with pytest.raises(DataError, match="got 2 rows, all of which have missing cells"):
            read(holes, Reading(drop_missing=True))
        with pytest.raises(DataError, match="got no columns.* left out: 'u', 'v'"):
            read(written(tmp_path / "w.csv", "u,v\n1,2\n"), Reading(exclude=("u", "v")))

    def test_text_in_another_encoding(self, tmp_path):
        path = tmp_path / "t.csv"
        for encoding, byte in (("latin-1", "0xf6"), ("utf-16", "0xff")):
            path.write_text("größe,v\n1,2\n", encoding=encoding)
            with pytest.raises(FileError, match=f"UTF-8, got a byte {byte}.*CSV UTF-8"):
                read(str(path), Reading())
