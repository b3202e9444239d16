//! A warm training step allocates nothing, counted by the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use moco_engine::ops::{
    AdamWStep, InfoNceInputs, InfoNceWorkspace, ParamGroup, ema, info_nce, l2_normalise, l2_normalise_backward,
    sgd_momentum,
};
use moco_engine::{BnGroups, Cpu, CpuKernels, Device, Element, Mode, Plan, PlanConfig, Recompute, bf16};
use moco_models::arch::{ArchSpec, Projector};
use moco_models::{Graph, Interpolation, Op};

struct Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTING.load(Ordering::Relaxed) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` comes from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_warm_step_allocates_nothing() {
    a_warm_step_allocates_nothing_storing::<f32>();
    a_warm_step_allocates_nothing_storing::<bf16>();
    a_warm_step_of_a_head_allocates_nothing_storing::<f32>();
    a_warm_step_of_a_head_allocates_nothing_storing::<bf16>();
}

/// A frozen stem, two levels through one tower, joined and brought to the size of the images; AdamW with clipping.
fn a_warm_step_of_a_head_allocates_nothing_storing<T: Element>() {
    let conv = |in_channels, out_channels, kernel, stride, bias| Op::Conv2d {
        in_channels,
        out_channels,
        kernel,
        stride,
        padding: kernel / 2,
        groups: 1,
        bias,
    };
    let mut g = Graph::new(3);
    let x = g.push("stem", conv(3, 16, 3, 2, false), &[g.input()]);
    let x = g.push("stem_norm", Op::BatchNorm { channels: 16, eps: 1e-5, momentum: 0.1 }, &[x]);
    let fine = g.push("stem_relu", Op::Relu, &[x]);
    let coarse = g.push("coarse", conv(16, 16, 3, 2, true), &[fine]);
    let tower = g.push("tower", conv(16, 16, 3, 1, false), &[fine]);
    let norm = g.push("norm", Op::GroupNorm { channels: 16, groups: 4, eps: 1e-5 }, &[tower]);
    let fine = g.push("relu", Op::Relu, &[norm]);
    let x = g.push_tied("tower.coarse", tower, &[coarse]);
    let x = g.push_tied("norm.coarse", norm, &[x]);
    let coarse = g.push("relu.coarse", Op::Relu, &[x]);
    let up = g.push("up", Op::Resize { interpolation: Interpolation::Nearest }, &[coarse, fine]);
    let joined = g.push("joined", Op::Concat, &[fine, up]);
    let mixed = g.push("mixed", conv(32, 4, 3, 1, true), &[joined]);
    let full = g.push("full", Op::Resize { interpolation: Interpolation::Bilinear }, &[mixed, g.input()]);
    g.add_tap("logits", full);

    let (batch, size) = (3, 40);
    let stem = vec!["stem".to_string(), "stem_norm".to_string()];
    let config = PlanConfig::new(batch, size, size, Mode::Train).with_frozen(stem.clone()).with_running_norms(stem);
    let mut plan = Plan::compile_with(&g, &config, CpuKernels::<T>::default()).unwrap();
    let weights = moco_models::init::initialise(&g, 1);
    let (mut params, mut buffers) = (weights.params, weights.buffers);
    let images: Vec<f32> = (0..batch * size * size * 3).map(|i| (i % 255) as f32 / 100.0 - 1.0).collect();
    let d_logits: Vec<f32> = (0..batch * size * size * 4).map(|i| (i % 19) as f32 / 10.0 - 0.9).collect();
    let [mut gradients, mut first, mut second] = [(); 3].map(|()| vec![0.0; params.len()]);
    let groups = [ParamGroup { range: 100..params.len(), lr: 1e-3, weight_decay: 0.05 }];
    let mut device = Cpu::<CpuKernels<T>>::default();
    let mut count = 0;
    let mut step = move |n: usize| {
        count += 1;
        plan.forward(&params, &mut buffers, &images[..n * size * size * 3], n).unwrap();
        plan.backward(&params, &[("logits", &d_logits[..n * size * size * 4])], &mut gradients).unwrap();
        device.clip_gradients(&mut gradients, 0.1, &groups).unwrap();
        let step = AdamWStep { step: count, betas: [0.9, 0.999], eps: 1e-8 };
        device.adamw_groups(&mut params, &gradients, &mut first, &mut second, &step, &groups).unwrap();
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        step(batch);
        step(batch);
        COUNTING.store(true, Ordering::SeqCst);
        step(batch);
        step(batch - 1);
        COUNTING.store(false, Ordering::SeqCst);
    });
    assert_eq!(ALLOCATIONS.swap(0, Ordering::SeqCst), 0);
}

fn a_warm_step_allocates_nothing_storing<T: Element>() {
    let (batch, dim, size) = (4, 16, 48);
    for (name, recompute) in [
        ("resnet18", Recompute::Nothing),
        ("resnet18", Recompute::Blocks),
        ("resnext50_32x4d", Recompute::Nothing),
        ("resnext50_32x4d", Recompute::Blocks),
    ] {
        let projector = Projector::Mlp { dim };
        let graph = ArchSpec { projector, width: 0.25, ..ArchSpec::new(name) }.build().unwrap();
        let compile = |mode, groups| {
            let config = PlanConfig::new(batch, size, size, mode).with_taps(&["projection"]).with_bn_groups(groups);
            Plan::compile_with(&graph, &config.with_recompute(recompute), CpuKernels::<T>::default()).unwrap()
        };
        let mut query_plan = compile(Mode::Train, BnGroups::Ranks(2));
        let mut key_plan = compile(Mode::Momentum, BnGroups::Interleaved(2));
        let weights = moco_models::init::initialise(&graph, 1);
        let (mut params, mut buffers) = (weights.params.clone(), weights.buffers.clone());
        let (mut key_params, mut key_buffers) = (weights.params, weights.buffers);
        let (mut gradients, mut velocity) = (vec![0.0; params.len()], vec![0.0; params.len()]);
        let images: Vec<f32> = (0..batch * size * size * 3).map(|i| (i % 255) as f32 / 100.0 - 1.0).collect();
        let queue: Vec<f32> = (0..3000 * dim).map(|i| ((i * 7919) % 200) as f32 / 500.0).collect();
        let mut rows = [(); 4].map(|()| vec![0.0; batch * dim]);
        let mut workspace = InfoNceWorkspace::default();
        let mut step = move |n: usize| {
            let images = &images[..n * size * size * 3];
            let [q, k, d_q, d_projection] = &mut rows;
            let [q, k, d_q, d_projection] = [q, k, d_q, d_projection].map(|rows| &mut rows[..n * dim]);
            ema(&mut key_params, &params, 0.99);
            key_plan.forward(&key_params, &mut key_buffers, images, n).unwrap();
            query_plan.forward(&params, &mut buffers, images, n).unwrap();
            l2_normalise(query_plan.output("projection").unwrap(), dim, q);
            l2_normalise(key_plan.output("projection").unwrap(), dim, k);
            let inputs = InfoNceInputs { query: q, key: k, queue: &queue, dim, temperature: 0.2, same_image: None };
            info_nce(&inputs, d_q, &mut workspace).unwrap();
            l2_normalise_backward(query_plan.output("projection").unwrap(), d_q, dim, d_projection);
            query_plan.backward(&params, &[("projection", d_projection)], &mut gradients).unwrap();
            sgd_momentum(&mut params, &gradients, &mut velocity, 0.03, 0.9, 1e-4);
        };
        // Inside the pool, because handing work to it from outside is what rayon itself may allocate for; and on one
        // thread, because which thread takes which task, and so which thread's scratch grows, is a matter of luck.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| {
            step(batch);
            step(batch);
            COUNTING.store(true, Ordering::SeqCst);
            step(batch);
            step(batch - 1);
            COUNTING.store(false, Ordering::SeqCst);
        });
        assert_eq!(ALLOCATIONS.swap(0, Ordering::SeqCst), 0, "{name} {recompute:?}");
    }
}
