//! Float16 training of two ranks, as real processes: what one cannot step, none steps.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fnet::config::{Amp, Config};
use fnet::data::{Batch, ImageMeta, InstanceMask, Target};
use fnet::distributed::{Deadlines, World};
use fnet::train::{Learner, LossScale, StepOutcome, StepPlace};
use fnet_protocol::client::Client;
use fnet_protocol::env;
use tch::{Device, Kind, Tensor};

const DEADLINES: Deadlines = Deadlines { meeting: Duration::from_secs(60), collective: Duration::from_secs(60) };
const SIDE: usize = 64;

fn config() -> Config {
    let mut config = Config::default();
    let model = &mut config.model;
    model.num_classes = 3;
    (model.backbone.embed_dim, model.backbone.depths, model.backbone.drop_path_rate) = (8, [1; 4], 0.0);
    (model.neck.out_channels, model.rpn.feat_channels) = (16, 16);
    (model.roi_head.bbox_fc_channels, model.roi_head.mask_channels, model.roi_head.mask_convs) = (32, 16, 1);
    (model.rpn.train_nms_pre, model.rpn.max_per_image) = (100, 50);
    (config.train.amp, config.train.ema, config.optimizer.grad_clip) = (Amp::Fp16, 0.9, 1.0);
    config
}

/// Rank 0 sees a picture of one large object, rank 1 one without objects.
fn batch(rank: usize) -> Batch {
    let side = SIDE as i64;
    let values = Tensor::arange(3 * side * side, (Kind::Double, Device::Cpu)) * (1.0 + rank as f64);
    let (x, width) = (8, 48);
    let object = Target {
        boxes: vec![[8.0, 8.0, 56.0, 56.0]],
        labels: vec![1],
        masks: vec![InstanceMask {
            frame: (SIDE, SIDE),
            x,
            y: x,
            width,
            height: width,
            pixels: Arc::from(vec![1u8; width * width]),
        }],
    };
    let meta = ImageMeta {
        image_id: 1,
        file_name: format!("rank{rank}.png"),
        original_size: (SIDE, SIDE),
        image_size: (SIDE, SIDE),
        padded_size: (SIDE, SIDE),
        scale_factor: [1.0; 4],
        flipped: false,
    };
    Batch {
        images: values.square().sin().to_kind(Kind::Float).view([1, 3, side, side]),
        metas: vec![meta],
        targets: vec![if rank == 0 { object } else { Target::default() }],
    }
}

fn step(learner: &mut Learner<'_>, world: &World, rank: usize, updates: bool) -> StepOutcome {
    let place = StepPlace { epoch: 0, iteration: 0, step: 0, micro_steps: 1, updates };
    learner.step(&batch(rank), place, 0.01, None, world, &Client::disconnected()).unwrap()
}

/// Whether a rank's picture alone overflows at a scale.
fn overflows(rank: usize, scale: f64) -> bool {
    let world = World::alone(Device::Cpu);
    let mut learner = Learner::new(&config(), &world).unwrap();
    learner.loss_scale = Some(LossScale::new(scale));
    step(&mut learner, &world, rank, true).skipped
}

/// The scale from which on a rank's picture overflows.
fn limit(rank: usize) -> f64 {
    let (mut sound, mut overflowing) = (256.0, 1e8);
    assert!(!overflows(rank, sound) && overflows(rank, overflowing));
    while overflowing / sound > 1.02 {
        let between = f64::sqrt(sound * overflowing);
        *(if overflows(rank, between) { &mut overflowing } else { &mut sound }) = between;
    }
    sound
}

/// All weights, the optimizer's state and the average, as one row.
fn state(learner: &Learner<'_>) -> Tensor {
    let averages = learner.ema.iter().flat_map(|ema| ema.averages().values()).map(|average| average.reshape([-1]));
    let weights = learner.trained().iter().map(|(_, tensor)| tensor.detach().reshape([-1]));
    let optimizer = learner.optimizer.state();
    let all: Vec<Tensor> = weights.chain(averages).chain(optimizer.values().map(|t| t.reshape([-1]))).collect();
    Tensor::cat(&all, 0)
}

#[test]
fn an_overflow_on_one_rank_leaves_out_the_update_on_all() {
    // Between the limits of the two pictures, one overflows and the other does not.
    let scale = (limit(0) * limit(1)).sqrt();
    assert_ne!(overflows(0, scale), overflows(1, scale), "at {scale}");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let children: Vec<_> = (0..2)
        .map(|rank: usize| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "body_of_a_rank", "--ignored", "--nocapture", "--test-threads=1"]);
            command.env("FNET_TEST_SCALE", scale.to_string());
            for (name, value) in [
                (env::RANK, rank.to_string()),
                (env::LOCAL_RANK, rank.to_string()),
                (env::WORLD_SIZE, "2".into()),
                (env::LOCAL_WORLD_SIZE, "2".into()),
                (env::MASTER_ADDR, "127.0.0.1".into()),
                (env::MASTER_PORT, port.to_string()),
                (env::DEVICE, "cpu".into()),
                (env::OMP_NUM_THREADS, "1".into()),
            ] {
                command.env(name, value);
            }
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (rank, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && told.contains("1 passed"), "rank {rank}: {told}{errors}");
    }
}

#[test]
#[ignore = "one rank of another test"]
fn body_of_a_rank() {
    let scale: f64 = std::env::var("FNET_TEST_SCALE").unwrap().parse().unwrap();
    let world = World::connect(DEADLINES).unwrap();
    let mut learner = Learner::new(&config(), &world).unwrap();
    let before = state(&learner);
    let rank = world.rank();
    let mut take = |scale: f64, updates: bool| {
        learner.loss_scale = Some(LossScale::new(scale));
        let skipped = step(&mut learner, &world, rank, updates).skipped;
        let left = learner.loss_scale.as_ref().unwrap().scale();
        (skipped, left, state(&learner))
    };
    let (skipped, left, now) = take(scale, true);
    assert!(skipped && left == scale / 2.0 && now == before, "a step that overflows on one rank");
    // An overflow in a micro-step reaches the other ranks with the update that it belongs to.
    let (skipped, _, now) = take(scale, false);
    assert!(!skipped && now == before);
    let (skipped, left, now) = take(256.0, true);
    assert!(skipped && left == 128.0 && now == before, "the update whose first micro-step overflowed");
    let (skipped, left, now) = take(256.0, true);
    assert!(!skipped && left == 256.0 && now != before, "a sound step");
    let bytes: Vec<u8> = Vec::<f32>::try_from(&now).unwrap().into_iter().flat_map(f32::to_le_bytes).collect();
    let all = world.all_gather_bytes(&bytes).unwrap();
    assert!(all.iter().all(|other| *other == bytes), "the ranks hold different weights");
    drop(learner);
    world.leave().unwrap();
}
