"""Write the checkpoint in another format, untimed, for the loads to compare with.

The task is a JSON object: `how`, `paths` (the safetensors shards), `out` (a folder), `keys` (a file). The answer: the
`paths` that were written.
"""

import json
from pathlib import Path
from typing import Any

from benchmark.programs.answers import answer


def torch_files(task: dict[str, Any]) -> list[str]:
    import torch
    from safetensors.torch import load_file

    made = []
    for path in task["paths"]:
        out = str(Path(task["out"]) / (Path(path).stem + ".bin"))
        torch.save(load_file(path), out)
        made.append(out)
    return made


def tensorizer_file(task: dict[str, Any]) -> list[str]:
    from safetensors.torch import load_file
    from tensorizer import EncryptionParams, TensorSerializer

    out = str(Path(task["out"]) / "model.tensors")
    key = bytes.fromhex(json.loads(Path(task["keys"]).read_text())["tensorizer"])
    tensors = {name: tensor for path in task["paths"] for name, tensor in load_file(path).items()}
    serializer = TensorSerializer(out, encryption=EncryptionParams(key))
    serializer.write_state_dict(tensors)
    serializer.close()
    return [out]


def cryptotensors_files(task: dict[str, Any]) -> list[str]:
    from cryptotensors.torch import save_file
    from safetensors.torch import load_file

    seal, sign = json.loads(Path(task["keys"]).read_text())["cryptotensors"]
    made = []
    for path in task["paths"]:
        out = str(Path(task["out"]) / (Path(path).stem + ".cryptotensors"))
        save_file(load_file(path), out, config={"enc_key": seal, "sign_key": sign})
        made.append(out)
    return made


WAYS = {"torch.load": torch_files, "tensorizer": tensorizer_file, "cryptotensors": cryptotensors_files}


if __name__ == "__main__":
    answer(lambda task: {"paths": WAYS[task["how"]](task)})
