"""Tests that test_gaudi_sim.py runs in one process on the simulated Gaudi; pytest does not collect them with the others."""

import gc
import io

import pytest
import torch


def values(*shape) -> torch.Tensor:
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)


def test_a_node_has_eight_cards_and_says_that_they_are_simulated():
    assert torch.accelerator.current_accelerator() == torch.device("hpu")
    assert (torch.hpu.is_available(), torch.hpu.device_count(), torch.hpu.current_device()) == (True, 8, 0)
    assert "simulated" in torch.hpu.get_device_name()


def test_tensors_come_and_go_unchanged():
    there = values(2, 3).to("hpu")
    assert str(there.device) == "hpu:0"
    assert torch.equal(there.cpu(), values(2, 3))
    assert torch.equal(there.t().cpu(), values(2, 3).t())
    assert there.sum().item() == 21


def test_a_view_and_its_base_share_memory():
    base = values(3, 4).to("hpu")
    base.view(-1)[4:8].zero_()
    assert base.untyped_storage()._cdata == base.t().untyped_storage()._cdata
    assert torch.equal(base[1].cpu(), torch.zeros(4)) and base[0, 0].item() == 1


def test_a_result_resizes_the_tensor_it_is_written_to():
    out = torch.empty(0, device="hpu")
    torch.add(values(5).to("hpu"), 1, out=out)
    assert torch.equal(out.cpu(), values(5) + 1)
    out.resize_(7)[5:] = 0
    assert torch.equal(out.cpu(), torch.cat([values(5) + 1, torch.zeros(2)]))


def test_set_makes_a_tensor_share_anothers_storage():
    first, second = values(4).to("hpu"), torch.zeros(4, device="hpu")
    second.set_(first)
    first.add_(1)
    assert torch.equal(second.cpu(), values(4) + 1)
    second.set_(first.untyped_storage(), 1, (2,), (1,))
    assert torch.equal(second.cpu(), values(4)[1:3] + 1)


def test_saved_tensors_load_on_either_side():
    file, there = io.BytesIO(), values(2, 3).to("hpu")
    torch.save({"whole": there, "part": there[1]}, file)
    for location, device in ((None, "hpu"), ("cpu", "cpu")):
        file.seek(0)
        loaded = torch.load(file, map_location=location)
        assert loaded["whole"].device.type == device
        assert torch.equal(loaded["part"].cpu(), values(2, 3)[1])


def test_gradients_are_those_of_the_cpu():
    gradients = []
    for device in ("cpu", "hpu"):
        weight = values(3, 3).div(9).to(device).requires_grad_()
        (weight @ weight.t()).softmax(-1)[0].log().sum().backward()
        assert weight.grad.device.type == device
        gradients.append(weight.grad.cpu())
    assert torch.equal(*gradients)


def test_autocast_lowers_and_keeps_precision():
    matrix = values(4, 4).to("hpu")
    with torch.autocast("hpu", dtype=torch.bfloat16):
        assert (matrix @ matrix).dtype == torch.bfloat16
        assert torch.nn.functional.linear(matrix, matrix).dtype == torch.bfloat16
        assert torch.nn.functional.layer_norm(matrix.bfloat16(), (4,)).dtype == torch.float32
        assert matrix.bfloat16().sum().dtype == torch.float32
    assert (matrix @ matrix).dtype == torch.float32


def test_random_numbers_are_those_of_the_cpu():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.hpu.manual_seed_all(5)
    state = torch.hpu.get_rng_state()
    assert torch.equal(torch.rand(3, device="hpu").cpu(), expected)
    torch.hpu.set_rng_state(state)
    assert torch.equal(torch.rand(3, device="hpu").cpu(), expected)


def test_host_operands_only_where_a_card_takes_them():
    there = values(3).to("hpu")
    assert torch.equal((there + values(3)).cpu(), 2 * values(3))
    assert torch.equal(there[torch.tensor([2, 0])].cpu(), torch.tensor([3.0, 1.0]))
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        there @ values(3)


def test_operations_that_it_cannot_simulate_are_refused():
    with pytest.raises(RuntimeError, match="a process has one card"):
        torch.zeros(1, device="hpu:1")
    with pytest.raises(RuntimeError, match="8 cards"):
        torch.hpu.set_device(8)
    with pytest.raises(NotImplementedError):
        values(2, 2).to("hpu").to_sparse()
    with pytest.raises(NotImplementedError):
        torch.hpu.get_device_capability()
    with pytest.raises(AttributeError, match="simulated Gaudi"):
        torch.hpu.make_coffee


def test_memory_is_that_of_the_host_without_a_limit_of_a_card():
    gc.collect()
    before = torch.hpu.memory_allocated()
    lent = torch.zeros(1000, device="hpu")
    assert torch.hpu.memory_allocated() - before == 4000
    assert torch.hpu.memory_stats()["Limit"] == 0 and torch.hpu.mem_get_info() == (0, 0)
    del lent
    assert torch.hpu.memory_allocated() == before
    assert torch.hpu.max_memory_allocated() >= before + 4000
    torch.hpu.reset_peak_memory_stats()
    assert torch.hpu.max_memory_allocated() == before


def test_mark_steps_count_in_lazy_mode_alone(monkeypatch):
    import habana_frameworks.torch.core as htcore

    from tests.gaudi_sim import counts

    before = counts()
    htcore.mark_step()
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "1")
    htcore.mark_step()
    after = counts()
    assert [after[name] - before[name] for name in ("mark_steps", "mark_steps_ignored")] == [1, 1]


def small_model() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))


def gradients_of(model, rows: int) -> list[torch.Tensor]:
    """Return the gradients of one step on `rows` rows."""
    device = next(model.parameters()).device
    model.zero_grad()
    model(values(rows, 4).div(10).to(device)).square().mean().backward()
    return [parameter.grad.cpu().clone() for parameter in model.parameters()]


def wrapped(kind: str) -> torch.nn.Module:
    if kind == "graph":
        return torch.hpu.wrap_in_hpu_graph(small_model().to("hpu"))
    model = small_model().to("hpu")
    return torch.hpu.ModuleCacher()(model=model, inplace=True)


@pytest.mark.parametrize("kind", ["graph", "cacher"])
def test_a_model_in_hpu_graphs_has_the_gradients_it_should(kind):
    from tests.gaudi_sim import counts

    before, plain, model = counts(), small_model(), wrapped(kind)
    for rows in (3, 3, 5, 3):  # captures a graph for 3 rows and one for 5
        for expected, found in zip(gradients_of(plain, rows), gradients_of(model, rows)):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        for module in (plain, model):  # a replay must read the new weights
            torch.optim.SGD(module.parameters(), lr=0.1).step()
    after = counts()
    names = ("graph_wraps", "graph_captures", "graph_replays")
    assert [after[name] - before[name] for name in names] == [1, 2, 2]


def test_the_next_replay_overwrites_what_a_graph_has_returned():
    model, inputs = (
        torch.hpu.wrap_in_hpu_graph(small_model().to("hpu")),
        [values(3, 4) * number for number in (1, 2, 3)],
    )
    with torch.no_grad():
        outputs = [model(rows.to("hpu")) for rows in inputs]
        expected = small_model()(inputs[-1])
    for found in outputs:
        torch.testing.assert_close(found.cpu(), expected)


def test_a_captured_graph_really_runs_again():
    x, total = values(3).to("hpu"), torch.zeros(3, device="hpu")
    graph = torch.hpu.HPUGraph()
    graph.capture_begin()
    squares = x * x
    total.add_(squares.view(3)[:1])
    graph.capture_end()
    x.copy_(torch.tensor([10.0, 20.0, 30.0]))
    graph.replay()
    assert squares.tolist() == [100.0, 400.0, 900.0]
    assert total.tolist() == [101.0] * 3


def test_a_graph_that_would_replay_old_values_raises():
    graph = torch.hpu.HPUGraph()
    graph.capture_begin()
    try:
        with pytest.raises(NotImplementedError, match="cannot leave the device"):
            values(1).to("hpu").item()
    finally:
        graph.capture_end()
    with pytest.raises(RuntimeError, match="nothing was captured"):
        torch.hpu.HPUGraph().replay()


def test_torch_compile_counts_and_returns_the_same_gradients():
    from tests.gaudi_sim import counts

    before = counts()["compiles"]
    compiled = torch.compile(small_model().to("hpu"), backend="hpu_backend")
    for expected, found in zip(gradients_of(small_model(), 3), gradients_of(compiled, 3)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert counts()["compiles"] - before == 2  # forward and backward


def test_compiled_code_keeps_the_layout_it_was_traced_with():
    def attention(states):
        heads = states.transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).reshape(2, 5, 16)

    states = values(2, 5, 2, 8).div(100)
    found = torch.compile(attention, backend="hpu_backend")(states.to("hpu"))
    torch.testing.assert_close(found.cpu(), attention(states), rtol=1e-6, atol=1e-6)


def bert_and_batches(tiny_model, rows: list[int]):
    from transformers import BertForQuestionAnswering

    torch.manual_seed(0)
    ids = [torch.randint(5, 100, (count, 16)) for count in rows]
    places = [torch.randint(0, 16, (2, count)) for count in rows]
    batches = [
        {"input_ids": batch, "attention_mask": torch.ones_like(batch), "start_positions": start, "end_positions": end}
        for batch, (start, end) in zip(ids, places)
    ]
    return BertForQuestionAnswering.from_pretrained(tiny_model), batches


def train(model, batches, device: str) -> list[float]:
    torch.manual_seed(1)  # dropout
    model.to(device).train()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for batch in batches:
        loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_training_a_bert_has_the_losses_of_the_cpu_and_counts_its_shapes(tiny_model):
    from tests.gaudi_sim import counts

    before = counts()["input_shapes"]
    on_cpu = train(*bert_and_batches(tiny_model, [4, 4, 3, 4, 2]), "cpu")
    assert counts()["input_shapes"] == before  # what runs on the CPU compiles nothing
    model, batches = bert_and_batches(tiny_model, [4, 4, 3, 4, 2])
    on_hpu = train(model, batches, "hpu")
    assert on_cpu == pytest.approx(on_hpu, abs=1e-5)
    assert on_hpu[-1] != pytest.approx(on_hpu[0], abs=1e-3)
    model.eval()
    for rows in (4, 4, 3):
        model(batches[0]["input_ids"][:rows].to("hpu"))
    after = counts()["input_shapes"]
    assert {phase: after[phase] - before[phase] for phase in after} == {"train": 3, "eval": 2, "generate": 0, "all": 5}


def test_a_compiled_model_counts_its_shapes_at_each_call(tiny_model):
    from tests.gaudi_sim import counts

    model, batches = bert_and_batches(tiny_model, [6, 6, 7])
    compiled = torch.compile(model.to("hpu").eval(), backend="hpu_backend", dynamic=True)
    before = counts()["input_shapes"]["eval"]
    for batch in batches:
        compiled(input_ids=batch["input_ids"].to("hpu"))
    assert counts()["input_shapes"]["eval"] - before == 2


def test_the_steps_of_generate_are_no_inputs_of_the_model():
    from transformers import T5Config, T5ForConditionalGeneration

    from tests.gaudi_sim import counts

    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).to("hpu").eval()
    before = counts()["input_shapes"]
    model.generate(input_ids=torch.ones(2, 5, dtype=torch.long, device="hpu"), max_new_tokens=4, num_beams=2)
    after = counts()["input_shapes"]
    assert after["eval"] == before["eval"] and after["generate"] > before["generate"]


@pytest.mark.parametrize("mode", ["lazy", "compile"])
def test_gaudi_trainer_follows_its_flags(tiny_model, tmp_path, monkeypatch, mode):
    """The real trainer of optimum-habana; last, since importing it changes transformers for the whole process."""
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "1" if mode == "lazy" else "0")
    from optimum.habana import GaudiConfig, GaudiTrainer, GaudiTrainingArguments

    from tests.gaudi_sim import counts

    flags = {
        "lazy": {
            "use_lazy_mode": True,
            "use_hpu_graphs_for_training": True,
            "use_hpu_graphs_for_inference": True,
        },
        "compile": {"use_lazy_mode": False, "torch_compile": True, "torch_compile_backend": "hpu_backend"},
    }
    batch = {"lazy": 5, "compile": 6}[mode]  # shapes that no other test here has
    common = {"report_to": "none", "max_steps": 3, "per_device_train_batch_size": batch, "bf16": True}
    args = GaudiTrainingArguments(tmp_path, use_habana=True, **common, **flags[mode])
    model, batches = bert_and_batches(tiny_model, [3 * batch])
    rows = [{name: tensor[row] for name, tensor in batches[0].items()} for row in range(3 * batch)]
    config = GaudiConfig(use_fused_adam=True, use_fused_clip_norm=True)
    before = counts()
    trainer = GaudiTrainer(model=model, args=args, gaudi_config=config, train_dataset=rows, eval_dataset=rows[:8])
    trainer.train()
    trainer.evaluate()
    after = counts()
    if mode == "lazy":
        assert after["mark_steps"] - before["mark_steps"] >= 6
        assert after["graph_wraps"] - before["graph_wraps"] == 2  # for training and for inference
        assert after["graph_replays"] > before["graph_replays"]
    else:
        assert after["compiles"] - before["compiles"] == 2
        assert after["mark_steps"] == before["mark_steps"]
    assert after["input_shapes"]["train"] - before["input_shapes"]["train"] == 1
