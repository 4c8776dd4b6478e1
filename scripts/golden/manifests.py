"""Manifests and the cut of files into blobs, FORMAT.md section 8."""

from collections.abc import Iterable

from golden.primitives import Json, canonical, digest, fixed, keyed


def sample_manifest() -> Json:
    names = [fixed(f"blob {n}").hex() for n in range(3)]
    return {
        "format": 1, "kind": "weights", "identity": {"layer": "3", "model": "模型"}, "single": False,
        "directories": [["sub", 0o755]],
        "files": [["a.bin", 0o644, 15, "bytes", [0, 1]], ["sub/é\n.safetensors", 0o600, 10, "safetensors", [0]]],
        "tensors": [["w", "BF16", [2, 2], 1, 2, 8], ["v", "F32", [1, 2], 0, 0, 8, [1, 1]], ["e", "U8", [0], 0, 15, 0]],
        "blobs": [[names[0], 10], [names[1], 5], [names[2], 64 << 20]],
    }  # fmt: skip


def with_a_key_changed(sample: Json) -> Iterable[tuple[str, Json]]:
    name, length = sample["blobs"][0]
    later = sample["blobs"][1:]
    yield "format 2", {"format": 2}
    yield "format as text", {"format": "1"}
    yield "format as truth", {"format": True}
    yield "a key that is not known", {"colour": "red"}
    yield "a kind that is not known", {"kind": "spell"}
    yield "a kind that is no text", {"kind": ["weights"]}
    yield "an identity field that is not known", {"identity": {"colour": "red"}}
    yield "an identity value that is a number", {"identity": {"layer": 3}}
    yield "an identity value that is not canonical", {"identity": {"positions": "07:9"}}
    yield "an identity value that says nothing", {"identity": {"model": "unspecified"}}
    yield "an identity that is a list", {"identity": []}
    yield "single, with two files", {"single": True}
    yield "single that is a number", {"single": 0}
    yield "a directory as a file", {"directories": [["a.bin", 0o755]]}
    yield "a directory twice", {"directories": [["sub", 0o755], ["sub", 0o755]]}
    yield "a directory that escapes", {"directories": [["../sub", 0o755]]}
    yield "a directory with three elements", {"directories": [["sub", 0o755, 1]]}
    yield "a digest in capitals", {"blobs": [[name.upper(), length], *later]}
    yield "a digest that is short", {"blobs": [[name[2:], length], *later]}
    yield "an empty blob", {"blobs": [*sample["blobs"], [name, 0]]}
    yield "a blob above 64 MiB", {"blobs": [*sample["blobs"], [name, (64 << 20) + 1]]}
    yield "a blob with three elements", {"blobs": [[name, length, 1], *later]}
    yield "files that are no list", {"files": 7}


def with_a_file_changed(sample: Json) -> Iterable[tuple[str, Json]]:
    first, second = sample["files"]
    for path in ("../a", "a/../b", "/etc/passwd", "a//b", "a/./b", ".", "..", "", "a/", "a\0b", "x" * 256, "sub", 7):
        why = f"a file at {path!r}" if len(str(path)) < 200 else "a path part of 256 bytes"
        yield why, {"files": [[path, *first[1:]], second]}
    for why, file in (
        ("a file twice", second),
        ("a blob number out of range", ["b", 0o644, 10, "bytes", [3]]),
        ("a negative blob number", ["b", 0o644, 10, "bytes", [-1]]),
        ("a size that is too large", ["b", 0o644, 16, "bytes", [0, 1]]),
        ("a size that is too small", ["b", 0o644, 14, "bytes", [0, 1]]),
        ("a mode with setuid", ["b", 0o4755, 15, "bytes", [0, 1]]),
        ("a mode that is true", ["b", True, 15, "bytes", [0, 1]]),
        ("a size with a fraction", ["b", 0o644, 15.0, "bytes", [0, 1]]),
        ("a size of 2**63", ["b", 0o644, 2**63, "bytes", [0, 1]]),
        ("a file of six elements", ["b", 0o644, 15, "bytes", [0, 1], 1]),
        ("a file of four elements", ["b", 0o644, 15, "bytes"]),
    ):
        yield why, {"files": [file, second], "tensors": sample["tensors"][:1]}


def with_a_tensor_changed() -> Iterable[tuple[str, Json]]:
    for why, tensor in (
        ("a tensor past the end of its file", ["w", "BF16", [2, 2], 1, 3, 8]),
        ("a tensor of no file", ["w", "BF16", [2, 2], 2, 0, 8]),
        ("a tensor with a negative start", ["w", "BF16", [2, 2], 1, -1, 8]),
        ("a tensor whose name is null", [None, "BF16", [2, 2], 1, 2, 8]),
        ("a tensor of eight elements", ["w", "BF16", [2, 2], 1, 2, 8, [2, 1], 0]),
        ("a tensor of five elements", ["w", "BF16", [2, 2], 1, 2]),
        ("a tensor with a negative extent", ["w", "BF16", [2, -2], 1, 2, 8]),
    ):
        yield why, {"tensors": [tensor]}


ROOT, FIRST, SECOND = (fixed(name).hex() for name in ("a key id", "a block", "a second block"))
CLAIMS = [[ROOT, 0, []], [FIRST, 4, [0, 1]], [SECOND, 1, [2]]]
SHAPE = {"dtype": "BF16", "layers": [[0, 2, 8, 128, 8, 128], [2, 1, 1, 576, 0, 0], [7, 1, 1, 576, 0, 0]]}


def with_claims_changed() -> Iterable[tuple[str, Json]]:
    for why, claims in (
        ("claims that are none", []), ("claims that are null", None), ("claims that are an object", {}),
        ("an identity claimed twice", [CLAIMS[0], CLAIMS[1], CLAIMS[0]]),
        ("an identity of 62 digits", [[ROOT[2:], 0, []]]), ("an identity in capitals", [[ROOT.upper(), 0, []]]),
        ("a claim of a blob that is not there", [[ROOT, 4, [3]]]), ("a negative blob number", [[ROOT, 4, [-1]]]),
        ("negative tokens", [[ROOT, -1, []]]), ("tokens that are true", [[ROOT, True, []]]),
        ("2**32 tokens", [[ROOT, 2**32, []]]), ("tokens with a fraction", [[ROOT, 4.0, []]]),
        ("a claim of two elements", [[ROOT, 0]]), ("a claim of four elements", [[ROOT, 0, [], 0]]),
        ("claimed blobs that are text", [[ROOT, 0, ""]]), ("claimed blobs that are an object", [[ROOT, 0, {}]]),
    ):  # fmt: skip
        yield why, {"claims": claims}


def with_the_shape_changed() -> Iterable[tuple[str, Json]]:
    run, layers = SHAPE["layers"][0], SHAPE["layers"]
    for why, shape in (
        ("null", None), ("a list", []), ("empty", {}), ("without layers", {"dtype": "BF16"}),
        ("with a key more", {**SHAPE, "tokens": 4}), ("of a dtype that is not known", {**SHAPE, "dtype": "BF8"}),
        ("of a dtype of half bytes", {**SHAPE, "dtype": "F4"}), ("whose dtype is no text", {**SHAPE, "dtype": 16}),
    ):  # fmt: skip
        yield f"a shape that is {why}" if why in ("null", "a list", "empty") else f"a shape {why}", {"shape": shape}
    for why, changed in (
        ("no layers", []), ("layers that are an object", {}), ("a run of five", [run[:5]]),
        ("a run of seven", [[*run, 1]]), ("a run of no layers", [[0, 0, *run[2:]]]),
        ("a negative layer", [[-1, *run[1:]]]),
        ("layer 4,096", [[4095, 2, *run[2:]]]), ("a run that begins within the one before", [run, [1, 2, 1, 1, 1, 1]]),
        ("runs that go backwards", layers[::-1]), ("equal neighbours that are not joined", [run, [2, 1, *run[2:]]]),
        ("no key heads", [[0, 1, 0, 128, 8, 128]]), ("key heads of no dim", [[0, 1, 8, 0, 8, 128]]),
        ("value heads of no dim", [[0, 1, 8, 128, 8, 0]]), ("a value without heads", [[0, 1, 8, 128, 0, 128]]),
        ("negative heads", [[0, 1, -8, 128, 8, 128]]), ("65,537 heads", [[0, 1, 65537, 1, 0, 0]]),
        ("a fraction of heads", [[0, 1, 8.0, 128, 8, 128]]), ("true heads", [[0, 1, True, 128, 8, 128]]),
        ("a token above 4 GiB", [[0, 1, 65536, 65536, 0, 0]]), ("runs of text", ["012345"]),
    ):  # fmt: skip
        yield f"a shape of {why}", {"shape": {"dtype": "BF16", "layers": changed}}


def kept(manifest: Json) -> list[list[object]]:
    """Return what the rows of a manifest's claims say: id, tokens, digests and about."""
    blobs = [name for name, _ in manifest["blobs"]]
    hashed = keyed(bytes(32), *map(bytes.fromhex, blobs))
    about = canonical(manifest["shape"]).encode() if "shape" in manifest else hashed
    return [
        [id_, tokens, [blobs[number] for number in used], b"".hex() if tokens else about.hex()]
        for id_, tokens, used in manifest.get("claims", [])
    ]


def manifests() -> Json:
    sample = sample_manifest()
    digest_key = fixed("a digest key")
    single = sample | {
        "single": True,
        "directories": [],
        "files": sample["files"][:1],
        "tensors": sample["tensors"][1:],
    }
    empty = sample | {"kind": "file", "identity": {}, "directories": [], "files": [], "tensors": [], "blobs": []}
    kv = single | {"kind": "kv", "tensors": [], "claims": CLAIMS, "shape": SHAPE}
    made = single | {"kind": "intermediate", "identity": {"model": "m", "sequence": "s"}, "claims": CLAIMS[:1]}
    most = kv | {
        "claims": [[ROOT, 2**32 - 1, [0] * 9]],
        "shape": {"dtype": "C128", "layers": [[4095, 1, 65536, 4, 0, 0]]},
    }
    named = [("a directory", sample), ("one file", single), ("nothing", empty), ("KV", kv), ("an intermediate", made),
             ("KV at its limits", most)]  # fmt: skip
    good = [
        {
            "name": name,
            "text": (text := canonical(one)),
            "id": digest(digest_key, text.encode()).hex(),
            "rows": kept(one),
        }
        for name, one in named
    ]
    bad: list[Json] = [{"why": f"no {key}", "without": key} for key in sample]
    for changes in (
        with_a_key_changed(sample), with_a_file_changed(sample), with_a_tensor_changed(), with_claims_changed(),
        with_the_shape_changed(),
    ):  # fmt: skip
        bad += [{"why": why, "puts": puts} for why, puts in changes]
    text, little = canonical(sample), canonical(empty)
    malformed = [
        ("a key twice", little[:-1] + ',"kind":"file"}'),
        ("a number that is none", text.replace("15", "NaN", 1)),
        ("text after its end", little + "x"),
        ("cut by a byte", little[:-1]),
        ("empty", ""),
        ("a list", "[]"),
        ("null", "null"),
        ("a lone surrogate", text.replace('"w"', '"\\ud800"')),
        ("a byte-order mark", "\ufeff" + little),
    ]
    not_utf8 = little.encode().replace(b"identity", b"identit\xff")
    raw = [("UTF-16", little.encode("utf-16-le")), ("a byte that is no UTF-8", not_utf8)]
    return {
        "digest_key": digest_key.hex(), "good": good, "bad": bad,
        "bad_texts": [{"why": why, "text": text} for why, text in malformed],
        "bad_bytes": [{"why": why, "bytes": whole.hex()} for why, whole in raw],
    }  # fmt: skip


def cuts() -> Json:
    """Return the cuts of tensors and files, each as [length, times] or [length, times, dtype], worked out by hand."""
    mib = 1 << 20
    tensors = [
        ("F32", [], False, [[4, 1]]), ("F32", [0, 5], False, []), ("F32", [16 * mib], False, [[64 * mib, 1]]),
        ("F32", [16 * mib + 1], False, [[64 * mib, 1], [4, 1]]),
        ("F32", [3, 8 * mib], False, [[64 * mib, 1], [32 * mib, 1]]), ("F32", [3, 9 * mib], False, [[36 * mib, 3]]),
        ("F32", [3, 9 * mib], True, [[64 * mib, 1], [44 * mib, 1]]),
        ("F32", [2, 17 * mib], False, [[64 * mib, 2], [8 * mib, 1]]),
        ("F32", [1, 16 * mib + 1], False, [[64 * mib, 1], [4, 1]]),
        ("BF16", [128256, 4096], False, [[64 * mib, 15], [5376 * 8192, 1]]),
        ("BF16", [7, 5, 1000003], False, [[60000180, 1], [10000030, 1]]),
        ("F4", [2, 3], False, [[3, 1]]),
    ]  # fmt: skip
    files = [
        (0, [], []), (5, [], [[5, 1, None]]), (130 * mib, [], [[64 * mib, 2, None], [2 * mib, 1, None]]),
        (20, [[8, "F32", [2]]], [[8, 1, None], [8, 1, "F32"], [4, 1, None]]),
        (20, [[12, "F32", [2]], [0, "U8", [5]]], [[5, 1, "U8"], [7, 1, None], [8, 1, "F32"]]),
        (20, [[0, "F32", [4]], [4, "F32", [4]], [16, "U8", [4]]], [[16, 1, "F32"], [4, 1, "U8"]]),
        (16, [[0, "F32", [4]], [0, "F32", [4]]], [[16, 1, "F32"]]),
        (8, [[0, "U8", [0]], [4, "U8", [0]]], [[4, 1, None], [4, 1, None]]),
        (96 * mib + 8, [[8, "F32", [3, 8 * mib]]], [[8, 1, None], [64 * mib, 1, "F32"], [32 * mib, 1, "F32"]]),
    ]  # fmt: skip
    return {
        "tensors": [
            {"dtype": dtype, "shape": shape, "strided": strided, "blobs": cut} for dtype, shape, strided, cut in tensors
        ],
        "files": [{"size": size, "tensors": spans, "blobs": cut} for size, spans, cut in files],
    }
