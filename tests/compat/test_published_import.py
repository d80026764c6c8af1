"""The published code's embeddings into a token store and back; errors have file and line."""

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from cortex_fast import TokenStore
from cortex_fast.compat.published_data import (
    PublishedDataError,
    export_embeddings,
    import_embeddings,
    read_codebook,
)
from cortex_fast.compat.published_data.embeddings import check_embeddings
from cortex_fast.compat.published_data.pickles import read_token_lists
from cortex_fast.vqgm import CheckpointError
from tests.compat.published_files import CHANNELS, CODES, SIDE, codebook, files, write_data
from tests.killing import die, hidden, killed

C = torch.from_numpy(codebook())


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path / "data")
    return tmp_path / "data"


def replace(path, old: str, new: str) -> None:
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())


def test_tokens_labels_and_names_come_from_the_table(folder, tmp_path):
    tokens = write_data(tmp_path / "other", images=200)
    ticks = []
    done = import_embeddings(tmp_path / "other", tmp_path / "s", codebook=C, threads=2, tick=ticks.append)
    store = TokenStore.load(tmp_path / "s")
    assert (done.rows, done.written, done.checked, done.bad, done.largest_error) == (200, 200, 200, (), 0.0)
    assert sum(ticks) == 200
    assert np.array_equal(store.tokens.long().numpy().reshape(200, -1), tokens)
    assert store.labels.tolist() == [row % 3 for row in range(200)] and store.names == ("0", "1", "2")
    assert store.fingerprint["checked"] == "every row" and store.fingerprint["rows"] == 200


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_round_trip_is_the_same_bytes(split, tmp_path):
    write_data(tmp_path / "data", split)
    import_embeddings(tmp_path / "data", tmp_path / "s", codebook=C)
    export_embeddings(tmp_path / "s", tmp_path / "back")
    again = files(tmp_path / "back")
    lists = again.pop("test_token_indices.pkl", None)
    assert again == files(tmp_path / "data")
    assert (lists is not None) == (split == "test")
    if lists is not None:
        assert len(pickle.loads(lists)) == 7  # our own file


@pytest.mark.parametrize("grid", [(3, 5), (4, 9)])  # 36 tokens could be 6 x 6
@pytest.mark.parametrize("given", [True, False])
def test_grids_are_those_of_the_embeddings(grid, given, tmp_path):
    tokens = torch.randint(CODES, (5, *grid), generator=torch.Generator().manual_seed(0))
    tokens[0].view(-1)[:15] = torch.arange(15)
    store = TokenStore(tokens, torch.arange(5) % 2, C, ("0", "1"))
    store.save(tmp_path / "s")
    export_embeddings(tmp_path / "s", tmp_path / "data")
    settings = {"codebook": C} if given else {"codes": CODES}
    import_embeddings(tmp_path / "data", tmp_path / "again", **settings)
    again = TokenStore.load(tmp_path / "again")
    assert again.grid == grid and torch.equal(again.tokens.long(), tokens)
    assert torch.equal(again.embedding(slice(0, 5)), store.embedding(slice(0, 5)))


def test_a_paper_scale_image_takes_512_bytes(tmp_path):
    sizes = []
    for images in (10, 110):
        tokens = torch.zeros(images, 16, 16, dtype=torch.int64)
        TokenStore(tokens, torch.zeros(images).long(), torch.zeros(16384, 2), ("a",)).save(tmp_path / "s")
        sizes.append((tmp_path / "s").stat().st_size)
    assert 512 * 100 <= sizes[1] - sizes[0] <= (512 + 8 + 1) * 100  # and a label


BREAK = {
    "label": (lambda f: replace(f / "train_embeddings.csv", "1_4.npy,1", "1_4.npy,x"), 6, "label"),
    "negative label": (lambda f: replace(f / "train_embeddings.csv", "1_4.npy,1", "1_4.npy,-1"), 6, "label"),
    "upwards": (lambda f: replace(f / "train_embeddings.csv", "1_4.npy", "../1_4.npy"), 6, "out of its folder"),
    "absolute": (lambda f: replace(f / "train_embeddings.csv", "1_4.npy", "/etc/passwd"), 6, "out of its folder"),
    "no name": (lambda f: replace(f / "train_embeddings.csv", "1_4.npy", ""), 6, "file name"),
    "twice": (lambda f: replace(f / "train_embeddings.csv", "1_4.npy", "0_0.npy"), 6, "line 2"),
    "no number": (lambda f: replace(f / "train_embeddings.csv", '1_4.npy,1,"[', '1_4.npy,1,"[x'), 6, "number"),
    "fraction": (lambda f: replace(f / "train_embeddings.csv", '1_4.npy,1,"[', '1_4.npy,1,"[1.5, '), 6, "number"),
    "one more": (lambda f: replace(f / "train_embeddings.csv", '1_4.npy,1,"[', '1_4.npy,1,"[1, '), 6, "got 17"),
    "range": (lambda f: replace(f / "train_embeddings.csv", '1_4.npy,1,"[', '1_4.npy,1,"[40'), 6, "got 0|got 1|to 40"),
    "no bracket": (lambda f: replace(f / "train_embeddings.csv", '1_4.npy,1,"[', '1_4.npy,1,"'), 6, "bracket"),
    "cut off": (
        lambda f: cut(f / "train_embeddings.csv", 4),
        8,
        "cut off",
    ),
    "missing": (lambda f: (f / "train" / "1_4.npy").unlink(), 6, "1_4.npy: No such file"),
    "truncated": (lambda f: os.truncate(f / "train" / "1_4.npy", 200), 6, "truncated or damaged .npy"),
    "empty": (lambda f: os.truncate(f / "train" / "1_4.npy", 0), 6, "truncated or damaged .npy"),
    "integers": (lambda f: np.save(f / "train" / "1_4.npy", np.zeros((CHANNELS, SIDE, SIDE), int)), 6, "float32"),
    "shape": (lambda f: np.save(f / "train" / "1_4.npy", np.zeros((CHANNELS, SIDE), np.float32)), 6, "shape"),
    "objects": (lambda f: np.save(f / "train" / "1_4.npy", np.array([{}]), allow_pickle=True), 6, "pickle"),
    "nan": (lambda f: change(f / "train" / "1_4.npy", np.nan), 6, "off the codebook .* nan"),
    "other": (lambda f: change(f / "train" / "1_4.npy", 1e-3), 6, "off the codebook"),
}


def cut(path, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


def change(path, by: float) -> None:
    array = np.load(path)
    array[CHANNELS - 1, SIDE - 1, SIDE - 1] += by
    np.save(path, array)


def test_bad_files_do_not_disturb_the_comparison_of_their_neighbours(tmp_path):
    tokens = torch.from_numpy(write_data(tmp_path, images=40)).view(40, SIDE, SIDE)
    names = [f"{row % 3}_{row}.npy" for row in range(40)]
    errors = {row: 0.25 * 2.0**-row for row in range(0, 40, 3)}
    for row, error in errors.items():
        np.save(tmp_path / "train" / names[row], np.full((CHANNELS, SIDE, SIDE), error, np.float32))
    (tmp_path / "train" / names[20]).unlink()
    os.truncate(tmp_path / "train" / names[37], 7)
    zeros = torch.zeros_like(C)
    for row in set(range(40)) - errors.keys() - {20, 37}:
        np.save(tmp_path / "train" / names[row], np.zeros((CHANNELS, SIDE, SIDE), np.float32))
    reasons, largest = check_embeddings(tmp_path / "train", names, tokens, zeros, tolerance=2.0**-20)
    bad = {row for row, error in errors.items() if error > 2.0**-20} | {20, 37}
    assert {row for row, reason in enumerate(reasons) if reason is not None} == bad
    assert largest == max(error for error in errors.values() if error <= 2.0**-20)
    assert "No such file" in reasons[20] and "truncated or damaged .npy" in reasons[37] and "by 0.25" in reasons[0]


@pytest.mark.parametrize("how", BREAK)
def test_a_bad_row_is_reported_with_file_and_line_and_skipped_on_request(how, folder, tmp_path):
    breaking, line, reason = BREAK[how]
    breaking(folder)
    out = tmp_path / "out" / "s"
    with pytest.raises(PublishedDataError, match=rf"(?s)^1 of 7 rows .*train_embeddings\.csv:{line}: .*({reason})"):
        import_embeddings(folder, out, codebook=C)
    assert not out.parent.exists()
    done = import_embeddings(folder, out, codebook=C, skip_bad=True)
    assert done.written == 6 and [row.line for row in done.bad] == [line]
    store = TokenStore.load(out)
    assert len(store) == 6 and store.fingerprint["skipped"] == 1
    assert store.fingerprint["skipped_rows"][0].startswith(f"line {line}: ")
    assert f"train_embeddings.csv:{line}: " in out.with_name("s.bad.txt").read_text()
    export_embeddings(out, tmp_path / "back")
    assert len(list((tmp_path / "back" / "train").iterdir())) == 6


def test_rounding_is_tolerated_and_other_floats_are_read(folder, tmp_path):
    change(folder / "train" / "1_4.npy", 1e-6)
    path = folder / "train" / "0_3.npy"
    np.save(path, np.asfortranarray(np.load(path).astype(np.float64)))
    done = import_embeddings(folder, tmp_path / "s", codebook=C)
    assert done.written == 7 and 1e-7 < done.largest_error < 2e-6


def test_trusted_tokens_are_checked_in_a_sample(tmp_path):
    write_data(tmp_path / "data", images=300)
    done = import_embeddings(tmp_path / "data", tmp_path / "s", codebook=C, trust_tokens=True)
    assert (done.written, done.checked) == (300, 256)
    assert "256 rows at random" in TokenStore.load(tmp_path / "s").fingerprint["checked"]
    for path in (tmp_path / "data" / "train").iterdir():
        change(path, 1.0)
    with pytest.raises(PublishedDataError, match=r"^256 of 300 rows are bad"):
        import_embeddings(tmp_path / "data", tmp_path / "s", codebook=C, trust_tokens=True)


def test_a_codebook_is_recovered_from_the_rows(folder, tmp_path):
    tokens = np.unique(TokenStore.load(_imported(folder, tmp_path)).tokens.long())
    with pytest.raises(PublishedDataError, match=rf"expected token ids in \[0, {int(tokens.max())}\)"):
        import_embeddings(folder, tmp_path / "r", codes=int(tokens.max()))
    done = import_embeddings(folder, tmp_path / "r", codes=CODES)
    store = TokenStore.load(tmp_path / "r")
    assert set(done.unseen) == set(range(CODES)) - set(tokens.tolist()) == set(store.fingerprint["unseen_codes"])
    assert torch.equal(store.codebook[tokens], C[tokens]) and not store.codebook[list(done.unseen)].any()
    change(folder / "train" / "0_6.npy", 1.0)
    with pytest.raises(PublishedDataError, match="rows are bad"):
        import_embeddings(folder, tmp_path / "r", codes=CODES)
    with pytest.raises(PublishedDataError, match="need a codebook"):
        import_embeddings(folder, tmp_path / "r", skip_bad=True)


def test_settings_that_do_not_fit_the_rows_are_named(folder, tmp_path):
    with pytest.raises(PublishedDataError, match=f"codes: expected none beside a codebook, which has {len(C)}, got 9"):
        import_embeddings(folder, tmp_path / "s", codebook=C, codes=9)
    with pytest.raises(PublishedDataError, match=r"class_names: expected \d names for labels to \d, got 1"):
        import_embeddings(folder, tmp_path / "s", codebook=C, class_names=["one"])
    assert not list(tmp_path.glob("s*"))


def _imported(folder, tmp_path):
    import_embeddings(folder, tmp_path / "s", codebook=C)
    return tmp_path / "s"


def test_tokens_may_come_from_the_published_pickle_of_which_nothing_is_executed(folder, tmp_path):
    table = folder / "train_embeddings.csv"
    lines = table.read_text().splitlines()
    lists = {line.split(",")[0]: [int(i) for i in line.split('"')[1][1:-1].split(",")] for line in lines[1:]}
    table.write_text("\n".join(",".join(line.split(",")[:2]) for line in lines) + "\n")
    with pytest.raises(PublishedDataError, match=r"csv:2: .*train_token_indices\.pkl"):
        import_embeddings(folder, tmp_path / "s", codebook=C)
    (folder / "train_token_indices.pkl").write_bytes(pickle.dumps(lists))
    assert import_embeddings(folder, tmp_path / "s", codebook=C).written == 7
    (folder / "train_token_indices.pkl").write_bytes(
        b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "x") + b"'\ntR."
    )
    with pytest.raises(PublishedDataError, match="refused to look up"):
        import_embeddings(folder, tmp_path / "s", codebook=C)
    assert not (tmp_path / "x").exists()


def test_which_split(folder, tmp_path):
    write_data(folder, "test", images=3)
    with pytest.raises(PublishedDataError, match="train, test"):
        import_embeddings(folder, tmp_path / "s", codebook=C)
    assert import_embeddings(folder, tmp_path / "s", codebook=C, split="test").written == 3
    with pytest.raises(FileNotFoundError, match="validation_embeddings"):
        import_embeddings(folder, tmp_path / "s", codebook=C, split="validation")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        import_embeddings(tmp_path / "nowhere", tmp_path / "s", codebook=C)


def test_codebook_files(tmp_path):
    from safetensors.torch import save_file

    np.save(tmp_path / "c.npy", codebook())
    save_file({"quantize.embedding.weight": C, "other": C[:2].clone()}, tmp_path / "c.safetensors")
    state = {"first_stage_model.quantize.embedding.weight": C, "transformer.weight": torch.zeros(3)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "c.ckpt")
    torch.save(C, tmp_path / "c.pth")
    for name in ("c.npy", "c.safetensors", "c.ckpt", "c.pth"):
        assert torch.equal(read_codebook(tmp_path / name), C)
    torch.save({"a": C, "b": C}, tmp_path / "two.pth")
    torch.save({"a": CHANNELS.__class__}, tmp_path / "objects.pth")
    np.save(tmp_path / "flat.npy", codebook()[0])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "c.npy").read_bytes()[:200])
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "c.ckpt").read_bytes()[:200])
    for name in ("two.pth", "flat.npy", "cut.npy"):
        with pytest.raises(PublishedDataError, match=name):
            read_codebook(tmp_path / name)
    for name in ("objects.pth", "cut.ckpt"):
        with pytest.raises(CheckpointError, match=name):
            read_codebook(tmp_path / name)


def test_a_codebook_beside_pickled_objects(tmp_path):
    path = tmp_path / "last.ckpt"
    content = {"callbacks": Evil(tmp_path / "proof"), "state_dict": {"quantize.embedding.weight": C}}
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: carries pickled objects .*tensors_only"):
        read_codebook(path)
    codebook = read_codebook(path, tensors_only=True)
    os.truncate(path, 0)  # nothing is left mapped
    assert torch.equal(codebook, C) and not (tmp_path / "proof").exists()


class Evil:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def test_a_full_disk_is_reported_with_the_file_and_leaves_nothing(folder, tmp_path, monkeypatch):
    store = _imported(folder, tmp_path)
    save = np.save

    def full(path, array):
        if path.name == "2_5.npy":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*2_5\.npy"):
        export_embeddings(store, tmp_path / "back")
    assert files(tmp_path / "back") == {}
    monkeypatch.undo()
    export_embeddings(store, tmp_path / "back")
    with pytest.raises(FileExistsError, match="train_embeddings"):
        export_embeddings(store, tmp_path / "back")


def test_names_of_another_store_are_refused(folder, tmp_path):
    store = _imported(folder, tmp_path)
    (tmp_path / "s.files.txt").write_text("../../x.npy\n")
    with pytest.raises(PublishedDataError, match=r"s\.files\.txt"):
        export_embeddings(store, tmp_path / "back")


def test_a_store_that_was_not_imported_is_exported_and_read_back(tmp_path):
    tokens = torch.randint(CODES, (5, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    TokenStore(tokens, torch.arange(5) % 2, C, ("a", "b")).save(tmp_path / "s")
    export_embeddings(tmp_path / "s", tmp_path / "data", split="test")
    import_embeddings(tmp_path / "data", tmp_path / "t", codebook=C)
    assert torch.equal(TokenStore.load(tmp_path / "t").tokens.long(), tokens)


def test_an_absurdly_large_label_is_a_bad_row(folder, tmp_path):
    replace(folder / "train_embeddings.csv", "1_4.npy,1", "1_4.npy,99999999")
    reason = r"train_embeddings\.csv:6: 1_4\.npy: expected a label in \[0, 65536\), got 99999999"
    for given in (C, None):
        with pytest.raises(PublishedDataError, match=reason):
            import_embeddings(folder, tmp_path / "s", codebook=given)
    with pytest.raises(PublishedDataError, match=reason):
        import_embeddings(folder, tmp_path / "s", codebook=C, class_names=["a", "b", "c"])
    assert import_embeddings(folder, tmp_path / "s", codebook=C, skip_bad=True).written == 6
    assert TokenStore.load(tmp_path / "s").names == ("0", "1", "2")
    replace(folder / "train_embeddings.csv", "1_4.npy,99999999", "1_4.npy,65536")
    with pytest.raises(PublishedDataError, match=r"expected a label in \[0, 65536\), got 65536"):
        import_embeddings(folder, tmp_path / "t", codebook=C)
    many = [str(label) for label in range(65537)]
    import_embeddings(folder, tmp_path / "t", codebook=C, class_names=many)
    assert TokenStore.load(tmp_path / "t").labels.max() == 65536


def test_one_damaged_token_does_not_make_a_codebook_of_gigabytes(folder, tmp_path):
    text = (folder / "train_embeddings.csv").read_text()
    first = text.split("[")[1].split(",")[0]
    replace(folder / "train_embeddings.csv", f"[{first}, ", "[4194302, ")
    with pytest.raises(PublishedDataError, match=r"ids to 4194302, of which \d+ are used: is one damaged\? codes"):
        import_embeddings(folder, tmp_path / "s")
    with pytest.raises(PublishedDataError, match=r"csv:2: .*expected token ids in \[0, 40\), got \d+ to 4194302"):
        import_embeddings(folder, tmp_path / "s", codes=CODES)
    with pytest.raises(ValueError, match=r"^codes: expected a whole number from 1 to 4194304, got 99999999999"):
        import_embeddings(folder, tmp_path / "s", codes=99999999999)


def _killed_between_its_renames(store, back, split):
    """An export whose embeddings are in place, and not its table."""

    def dead():
        Path.replace = lambda path, target: die() if str(target).endswith(".csv") else rename(path, target)
        export_embeddings(store, back, split=split)

    rename = Path.replace
    killed(dead)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_next_export_finishes_one_killed_between_its_renames(split, folder, tmp_path):
    store, back = _imported(folder, tmp_path), tmp_path / "back"
    _killed_between_its_renames(store, back, split)
    embeddings, table = back / split, back / f"{split}_embeddings.csv"
    assert embeddings.is_dir() and not table.exists() and hidden(back)
    before = {path: path.stat().st_mtime_ns for path in embeddings.iterdir()}
    assert export_embeddings(store, back, split=split) == table
    assert {path: path.stat().st_mtime_ns for path in embeddings.iterdir()} == before and not hidden(back)
    export_embeddings(store, tmp_path / "straight", split=split)
    assert files(back) == files(tmp_path / "straight")
    with pytest.raises(FileExistsError, match=f"{split}_embeddings.csv: already exists"):
        export_embeddings(store, back, split=split)


@pytest.mark.parametrize("change", ["value", "more", "fewer", "empty", "of another store"])
def test_a_folder_with_anything_but_an_exports_files_is_refused_and_stays(change, folder, tmp_path):
    store, back = _imported(folder, tmp_path), tmp_path / "back"
    _killed_between_its_renames(store, back, "train")
    some = back / "train" / "1_4.npy"
    if change == "value":
        array = np.load(some)
        array[0, 0, 0] = np.nextafter(array[0, 0, 0], np.float32(9))
        np.save(some, array)
    elif change == "more":
        (back / "train" / "mine.txt").write_text("mine")
    elif change == "fewer":
        some.unlink()
    elif change == "empty":
        for path in (back / "train").iterdir():
            path.unlink()
    else:
        write_data(tmp_path / "other", seed=5)
        store = tmp_path / "o"
        import_embeddings(tmp_path / "other", store, codebook=C)
    before = files(back / "train")
    with pytest.raises(FileExistsError, match="train: already exists; it is not overwritten"):
        export_embeddings(store, back)
    assert files(back / "train") == before and not (back / "train_embeddings.csv").exists()


def test_a_second_export_to_the_same_place_is_refused(folder, tmp_path):
    store, errors = _imported(folder, tmp_path), []

    def second(_rows):
        with pytest.raises(BlockingIOError, match=r"train_embeddings\.csv: another run is writing it") as error:
            export_embeddings(store, tmp_path / "back")
        errors.append(error)

    export_embeddings(store, tmp_path / "back", tick=second)
    assert errors and files(tmp_path / "back") == files(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"ccollections\nOrderedDict\n(tR.",  # harmless, but a name: nothing of a user's file is looked up
        b"cbuiltins\ndict\n(tR.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93)R.",
        b"cnumpy\nndarray\n.",
    ],
)
def test_no_name_in_a_pickle_of_token_ids_is_looked_up(content, tmp_path):
    (tmp_path / "t.pkl").write_bytes(content)
    with pytest.raises(PublishedDataError, match=r"t\.pkl: .*refused to look up"):
        read_token_lists(tmp_path / "t.pkl")


def test_damaged_pickles_of_token_ids_are_refused(tmp_path):
    good = pickle.dumps({"a.npy": [1, 2, 3]})
    for content in (good[:-3], b"", b"(" * 100_000 + b".", b"\x80\x04\x8e" + b"\xff" * 8, pickle.dumps([1]), b"I5\n."):
        (tmp_path / "t.pkl").write_bytes(content)
        with pytest.raises(PublishedDataError, match=r"t\.pkl: "):
            read_token_lists(tmp_path / "t.pkl")
    (tmp_path / "t.pkl").write_bytes(good)
    assert read_token_lists(tmp_path / "t.pkl") == {"a.npy": [1, 2, 3]}


def test_codebooks_of_8_bits_and_lying_headers_are_refused_by_name(tmp_path):
    from safetensors.torch import save_file

    save_file({"codebook": C.to(torch.float8_e4m3fn)}, tmp_path / "eight.safetensors")
    np.save(tmp_path / "lies.npy", codebook())
    text = (tmp_path / "lies.npy").read_bytes()
    for name, changed in (
        ("lies.npy", text.replace(b"(40, 6)", b"(99, 6)")),
        ("far.npy", text.replace(b"(40, 6), }          ", b"(9999999999, 6), }  ")),
        ("less.npy", text.replace(b"(40, 6)", b"(-1, 6)")),
        ("open.npy", text.replace(b"(40, 6)", b"(40, 6(")),
        ("other.npy", text.replace(b"'<f4'", b"'|O4'")),
    ):
        assert changed != text
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(PublishedDataError, match=rf"{name}: a truncated or damaged \.npy file"):
            read_codebook(tmp_path / name)
    with pytest.raises(PublishedDataError, match=r"eight\.safetensors: codebook: expected .* at least 16 bits"):
        read_codebook(tmp_path / "eight.safetensors")
