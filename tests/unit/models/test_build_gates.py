"""What a transformed graph must still be: each trap is built here, and found."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import needs
from build_specs import many_model, silu_model
from skerry.models.building import gates, jobs, processor, transforms
from skerry.models.quantisation import RECIPES, Recipe, quantise
from tiny_models import HEIGHT, WIDTH
from unit.models.test_quantisation import overflowing

ALL_INT8 = Recipe("nothing", per_channel=False)


def feeds(*greys: float) -> list[dict[str, np.ndarray]]:
    return [{"x": np.full((1, 3, HEIGHT, WIDTH), grey, np.float32)} for grey in greys]


def quantised(model: onnx.ModelProto, folder: Path, recipe: Recipe = ALL_INT8) -> bytes:
    onnx.save(model, folder / "model.onnx")
    return quantise(folder / "model.onnx", feeds(*np.linspace(0.1, 1, 10)), recipe)


def traps(model: onnx.ModelProto, content: bytes, its: list[dict[str, np.ndarray]]) -> list[str]:
    return gates.traps(content, model.SerializeToString(), its)


def test_a_silu_whose_scale_one_large_value_sets_collapses(tmp_path):
    (found,) = traps(silu_model(), quantised(silu_model(), tmp_path), feeds(0.1, 0.5, 0.9))
    assert found.startswith("activations collapse: 97% of the values of 'silu")


def test_a_silu_of_even_values_does_not_collapse(tmp_path):
    assert (
        traps(silu_model(stretch=1), quantised(silu_model(stretch=1), tmp_path), feeds(0.1, 0.5, 0.9)) == []
    )


def test_a_softmax_of_many_labels_no_longer_sums_to_one(tmp_path):
    content = quantised(many_model(), tmp_path)
    (found,) = traps(many_model(), content, feeds(0.01))
    assert found.startswith("softmax 'p")
    assert "expected a sum of 1, got one that is off by" in found
    assert traps(many_model(), content, feeds(1.0)) == [], "where it is sure of one, rounding costs nothing"


def test_a_softmax_that_stays_in_float_sums_to_one(tmp_path):
    content = quantised(many_model(), tmp_path, Recipe("tail", per_channel=False))
    assert traps(many_model(), content, feeds(0.01)) == []


def test_a_graph_without_learned_layers_and_softmax_falls_into_no_trap():
    model = silu_model()
    del model.graph.node[4:]
    model.graph.output[0].name = "silu"
    assert traps(model, model.SerializeToString(), feeds(0.5)) == []


@needs.old_processor
def test_sums_that_overflow_without_vnni_are_found_on_an_emulated_processor(tmp_path):
    """Of 2013: it adds products of eight bits in pairs in 16 bits."""
    content, its = overflowing(tmp_path)
    (tmp_path / "int8.onnx").write_bytes(content)
    jobs.write_feeds(tmp_path / "feeds.npz", its)
    job = jobs.Deviate(model=str(tmp_path / "int8.onnx"), feeds=str(tmp_path / "feeds.npz"))
    said = jobs.deviation(job, processor.emulator("avx2"))
    assert said.error == ""
    assert gates.overflow(said.value, "avx2").startswith("integers overflow on avx2: ")
    assert gates.overflow(0.05, "avx2") == ""


def test_outputs_that_differ_or_are_not_finite_are_unequal():
    one = [{"y": np.array([1.0, 100.0])}]
    assert gates.unequal(one, [{"y": np.array([1.05, 100.0])}], 1e-3) == ""
    assert "expected at most 0.001 of the largest value, got 0.01" in gates.unequal(
        one, [{"y": np.array([2.0, 100.0])}], 1e-3
    )
    assert gates.unequal(one, [{"y": np.array([np.inf, 100.0])}], 1e-3) == "an output is not finite"
    assert "differ" in gates.unequal(one, [{"z": np.array([1.0, 100.0])}], 1e-3)


def test_in_sixteen_bits_nodes_stay_in_order_and_inputs_as_they_were(tmp_path):
    model = onnx.load_from_string(transforms.half(silu_model(stretch=1)))
    onnx.checker.check_model(model, full_check=True)
    kinds = {each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)}
    assert kinds == {onnx.TensorProto.FLOAT}
    assert {each.data_type for each in model.graph.initializer} >= {onnx.TensorProto.FLOAT16}


def test_pruning_sets_the_smallest_weights_of_each_layer_to_zero():
    content, said = transforms.prune(silu_model(), 0.5)
    arrays = {
        each.name: onnx.numpy_helper.to_array(each)
        for each in onnx.load_from_string(content).graph.initializer
    }
    assert np.mean(arrays["first"] == 0) == pytest.approx(0.5, abs=0.05)
    assert arrays["first"].max() == pytest.approx(500 / (3 * HEIGHT * WIDTH)), "the large ones stay"
    assert np.count_nonzero(arrays["bias"]) == 2, "only layers' weights are looked at"
    assert said.endswith("weights in 2 layers are 0")


def test_where_old_processors_count_each_recipe_is_tried_in_eight_bits_and_in_seven():
    ways = transforms.recipes(narrow=True, most=100)
    assert len(set(ways)) == 2 * len(RECIPES)
    assert [way.reduced for way in ways[:4]] == [False, True, False, True]
    assert transforms.recipes(narrow=False, most=100) == RECIPES
    assert len(transforms.recipes(narrow=True, most=3)) == 3


def test_the_best_instruction_set_for_bytes_is_named():
    assert processor.instruction_set("flags : fpu sse2 avx avx2 avx512bw avx512_vnni\n") == "avx512_vnni"
    assert processor.instruction_set("flags : fpu sse2 avx avx2\n") == "avx2"
    assert processor.instruction_set("Features : fp asimd asimddp\n") == "dotprod"
