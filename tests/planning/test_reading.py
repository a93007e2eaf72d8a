"""What is read of compiled programs: collectives, the kernels of GPU programs, the cycles of TPU programs."""

import pytest

from ucgm_jax.planning import chips, collectives, cycles, kernels

PROGRAM = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(28)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %gathered = bf16[16,4]{1,0} all-gather(%w), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %part.1 = bf16[2,4]{1,0} all-gather(%w), channel_id=7, replica_groups=[2,4]<=[8], frontend_attributes={chain_id="0"}
  %part.2 = bf16[2,4]{1,0} all-gather(%w), channel_id=7, replica_groups=[2,4]<=[8], frontend_attributes={chain_id="0"}
}

%data_dependent (p: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[] constant(100)
  ROOT %any = pred[] all-reduce(%x), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %loop = (s32[], f32[8,4]) while(%t), condition=%condition, body=%body
  %wait = (s32[], f32[8,4]) while(%t), condition=%data_dependent, body=%add
  %scattered = f32[2,4]{1,0} reduce-scatter(%y), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
  %summed = (f32[4]{0}, f32[2]{0}) all-reduce(%y, %z), channel_id=4, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %named = f32[4]{0} all-reduce(%y), channel_id=5, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, to_apply=%add
}
"""


def test_collectives_of_a_program():
    found = collectives.read(PROGRAM, {"data": 2, "fsdp": 4, "tensor": 1})
    facts = {(one.kind, one.axes, one.shape): (one.count, one.bytes, one.wire_bytes) for one in found}
    assert facts == {
        ("all-gather", "fsdp", "bf16[16,4]"): (28, 128, 96),
        ("all-gather", "fsdp", "bf16[2,4]"): (28, 16, 12),  # in two pieces of one chain
        ("all-reduce", "data+fsdp", "pred[]"): (1, 1, 2 * 7 / 8),
        ("reduce-scatter", "fsdp", "f32[2,4]"): (1, 128, 96),
        ("all-reduce", "data", "f32[4]+f32[2]"): (1, 24, 24),
        ("all-reduce", "data", "f32[4]"): (1, 16, 16),
    }


GPU_PROGRAM = """
%wrapped (p: f32[2,4]) -> f32[16,4] {
  ROOT %inside = f32[16,4]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=16] {'axis_0'}
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %g = ((bf16[2,4]{1,0}, bf16[2]{0}), (bf16[8,4]{1,0}, /*index=1*/bf16[8]{0})) all-gather-start(%w, %v), channel_id=1, replica_groups=mesh['data'=4,'fsdp'=4] {'fsdp'}, dimensions={0}
  %gathered = (bf16[8,4]{1,0}, bf16[8]{0}) all-gather-done(%g)
  %s = ((f32[16,4]{1,0}), (f32[4,4]{1,0})) reduce-scatter-start(%y), channel_id=2, replica_groups=[4,4]<=[16], to_apply=%add
}

%condition (p: (s32[], f32[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %loop = (s32[], f32[8,4]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"28"}}
  %now = ((f32[4]{0}), f32[4]{0}) all-reduce-start(%z), channel_id=3, replica_groups=[4,4]<=[4,4]T(1,0), to_apply=%add
  %before = f32[6]{0} all-reduce-start(%z), channel_id=4, replica_groups={{0,4,8,12},{1,5,9,13}}, to_apply=%add
  %pair = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%z), source_target_pairs={{0,1},{7,8}}
  %start = ((f32[2,4]{1,0}), f32[16,4]{1,0}) async-start(%x), calls=%wrapped
  %end = f32[16,4]{1,0} async-done(%start), calls=%wrapped
}
"""  # noqa: E501


def test_asynchronous_collectives_of_gpus():
    """Counted once, by their results, whether those of the operands stand before them or not."""
    mesh = {"data": 4, "fsdp": 4, "tensor": 1}
    found = collectives.read(GPU_PROGRAM, mesh, hosts=[place // 8 for place in range(16)])
    facts = {(one.kind, one.axes, one.shape): (one.count, one.bytes, one.crossing) for one in found}
    assert facts == {
        ("all-gather", "fsdp", "bf16[8,4]+bf16[8]"): (28, 80, 0),
        ("reduce-scatter", "fsdp", "f32[4,4]"): (28, 256, 0),
        ("all-reduce", "data", "f32[4]"): (1, 16, 2),
        ("all-reduce", "data", "f32[6]"): (1, 24, 2),
        ("collective-permute", "fsdp", "f32[4]"): (1, 16, 1),  # the second pair is on two hosts
        ("all-gather", "data+fsdp", "f32[16,4]"): (1, 256, 8),
    }
    assert {one.crossing for one in collectives.read(GPU_PROGRAM, mesh)} == {0}


KERNELS = """
%fused (p0: bf16[28,8,4], p1: s32[], p2: f32[28,4], p3: f32[4]) -> (bf16[8,4], f32[28,4]) {
  %p0 = bf16[28,8,4]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[28,4]{1,0} parameter(2)
  %p3 = f32[4]{0} parameter(3)
  %one = bf16[1,8,4]{2,1,0} dynamic-slice(%p0, %p1, %p1, %p1), dynamic_slice_sizes={1,8,4}
  %flat = bf16[8,4]{1,0} bitcast(%one)
  %row = f32[1,4]{1,0} bitcast(%p3)
  %all = f32[28,4]{1,0} dynamic-update-slice(%p2, %row, %p1, %p1)
  ROOT %both = (bf16[8,4]{1,0}, f32[28,4]{1,0}) tuple(%flat, %all)
}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %left = bf16[8,16]{1,0} get-tuple-element(%p), index=1
  %right = bf16[16,4]{1,0} get-tuple-element(%p), index=2
  %gemm = (bf16[8,4]{1,0}, s8[4096]{0}) custom-call(%left, %right), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]},"epilogue":"BIAS"}}
  %gathered = bf16[64,4]{1,0} all-gather(%right), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
}

%condition (p: (s32[], bf16[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: bf16[28,8,4], b: s32[], c: f32[28,4], d: f32[4]) -> bf16[8,4] {
  %a = bf16[28,8,4]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[28,4]{1,0} parameter(2)
  %d = f32[4]{0} parameter(3)
  %fusion.1 = (bf16[8,4]{1,0}, f32[28,4]{1,0}) fusion(%a, %b, %c, %d), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"50"}
  %x = bf16[2,9,9,8]{3,2,1,0} iota(), iota_dimension=0
  %k = bf16[16,3,3,8]{3,2,1,0} iota(), iota_dimension=0
  %convolved = (bf16[2,9,9,16]{3,2,1,0}, u8[100]{0}) custom-call(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %loop = (s32[], bf16[8,4]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"28"},"estimated_cycles":"7"}
}
"""  # noqa: E501


def test_kernels_of_a_gpu_program():
    """Slices count as slices, arrays updated in place as what is written, rooms to work in not at all."""
    found = {kernel.kind: kernel for kernel in kernels.read(KERNELS, chips.CHIPS["h100"])}
    assert {kind: (kernel.count, kernel.bytes, kernel.flops) for kind, kernel in found.items()} == {
        "matrix product": (28, 28 * 2 * (8 * 16 + 16 * 4 + 8 * 4), 28 * 2 * 8 * 16 * 4),
        "fusion": (1, (2 * 8 * 4 + 4 + 4 * 4) + (2 * 8 * 4 + 4 * 4), 0),
        "convolution": (1, 2 * (2 * 81 * 8 + 16 * 9 * 8 + 2 * 81 * 16), 2 * 2 * 81 * 16 * 9 * 8),
    }
    assert found["fusion"].seconds == pytest.approx(2e-6, rel=1e-3)  # starting it takes longest


def test_cycles_of_a_tpu_program():
    """Of fusions, once for each turn of a loop around them; a loop has none of its own."""
    text = KERNELS.replace('"epilogue":"BIAS"', '"epilogue":"BIAS","estimated_cycles":"3"')
    assert cycles.read(text) == [cycles.Loop("body", 28, 84), cycles.Loop("main", 1, 50)]
