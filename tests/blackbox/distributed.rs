//! The ranks of a job as real processes, started as by fnet-launch and torchrun.

#[path = "../../crates/torch-ext/tests/ranks/processes.rs"]
mod processes;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use processes::{IS_RANK, finish, one_rank, rank, rank_command};
use tch::{Device, Kind, Tensor};
use torch_ext::distributed::{StoreOptions, TcpStore};

use fnet_common::ErrorKind;
use fnet_config as config;
use fnet_data::{Batch, ImageMeta, Images, InstanceMask, Target};
use fnet_distributed::{Communicator, DataParallel, Deadlines};
use fnet_model::{MaskRcnn, Parameters, StepRandom};
use fnet_protocol::client::Client;
use fnet_protocol::message::Operation;
use fnet_protocol::{env, status};
use fnet_train::{LossScale, StepIndex, StepVote, TrainState};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
const DEADLINES: Deadlines = Deadlines { rendezvous: Duration::from_secs(60), collective: Duration::from_secs(60) };

#[test]
fn a_job_of_one_rank_needs_no_peers() {
    let communicator = Communicator::alone(Device::Cpu);
    let value = Tensor::full([2], 3.0, FLOAT);
    communicator.broadcast(&value, 0).unwrap();
    assert_eq!(value, Tensor::full([2], 3.0, FLOAT));
    assert_eq!(communicator.all_gather_bytes(b"abc").unwrap(), [b"abc".to_vec()]);
    assert_eq!(communicator.broadcast_bytes(b"", 0).unwrap(), b"");
    assert!(communicator.any(true).unwrap() && !communicator.any(false).unwrap());
    assert_eq!(communicator.differentiable_sum()(&value).unwrap(), value);
    communicator.barrier().unwrap();
    communicator.leave().unwrap();
}

#[test]
fn collectives_give_correct_values() {
    let Some(()) = rank!(3) else { return };
    check_collectives(&Communicator::connect(DEADLINES).unwrap());
}

fn check_collectives(communicator: &Communicator) {
    let rank = communicator.rank();
    let value = Tensor::full([3], rank as f64, FLOAT);
    communicator.all_reduce_sum(&value).unwrap();
    let sum = (communicator.world_size() * (communicator.world_size() - 1) / 2) as f64;
    assert_eq!(value, Tensor::full([3], sum, FLOAT));
    let own = |rank: usize| vec![rank as u8; rank * 5];
    let expected: Vec<_> = (0..communicator.world_size()).map(own).collect();
    assert_eq!(communicator.all_gather_bytes(&own(rank)).unwrap(), expected);
    assert_eq!(communicator.all_gather_bytes(b"").unwrap(), vec![Vec::<u8>::new(); communicator.world_size()]);
    assert_eq!(communicator.broadcast_bytes(&own(rank), 1).unwrap(), own(1));
    assert_eq!(communicator.broadcast_bytes(&own(rank), 0).unwrap(), b"");
    assert!(communicator.any(rank == 1).unwrap());
    assert!(!communicator.any(false).unwrap());
    let doubled = communicator.differentiable_sum()(&Tensor::ones([2], FLOAT)).unwrap();
    assert_eq!(doubled, Tensor::full([2], communicator.world_size() as f64, FLOAT));
    communicator.barrier().unwrap();
}

#[test]
fn under_torchrun_all_ranks_are_clients_of_the_agents_store() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let _agent = TcpStore::new(StoreOptions {
        host: "127.0.0.1".into(),
        port,
        is_server: true,
        timeout: Duration::from_secs(60),
        listener: Some(listener.into()),
    })
    .unwrap();
    // A second attempt uses the same store.
    for attempt in ["0", "1"] {
        let children = (0..2).map(|rank| {
            let mut command = rank_command("distributed::collectives_give_correct_values", rank, 2, port);
            command.env(env::TORCHELASTIC_USE_AGENT_STORE, "True").env("TORCHELASTIC_RESTART_COUNT", attempt);
            command.spawn().unwrap()
        });
        finish(children.collect());
    }
}

#[test]
fn a_rank_in_a_sum_of_batch_norm_shows_it_on_its_status_page_in_both_passes() {
    let Some(()) = rank!(2) else { return };
    let communicator = Communicator::connect(DEADLINES).unwrap();
    let (sum, page) = (communicator.differentiable_sum(), status::page());
    let begun = page.read().collective;
    // Rank 1 enters a sum after rank 0 is seen waiting in it. The names of the files are unique to this run.
    let port = std::env::var(env::MASTER_PORT).unwrap();
    let seen = |number: u64| std::env::temp_dir().join(format!("fnet-statistics-{port}-{number}"));
    let until = |what: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !what() {
            assert!(Instant::now() < deadline, "{:?}", page.read());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let meet = |number: u64, action: &mut dyn FnMut()| match communicator.rank() {
        0 => std::thread::scope(|scope| {
            scope.spawn(|| {
                until(&|| {
                    let state = page.read();
                    (state.operation, state.collective) == (Operation::Statistics, begun + number)
                });
                std::fs::write(seen(number), "").unwrap();
            });
            action();
        }),
        _ => {
            until(&|| seen(number).exists());
            std::fs::remove_file(seen(number)).unwrap();
            action();
        }
    };
    let x = Tensor::ones([3], FLOAT).set_requires_grad(true);
    let mut total = Tensor::new();
    meet(1, &mut || total = sum(&x).unwrap().sum(Kind::Float));
    assert_eq!((page.read().operation, page.read().collective), (Operation::None, begun + 1));
    meet(2, &mut || total.backward());
    assert_eq!((page.read().operation, page.read().collective), (Operation::None, begun + 2));
    assert_eq!(x.grad(), Tensor::full([3], 2.0, FLOAT));
    drop(total);
    communicator.leave().unwrap();
}

/// A small detector.
fn small_model() -> config::Model {
    let mut config = config::Model { num_classes: 3, ..Default::default() };
    config.backbone.embed_dim = 8;
    config.backbone.depths = [1, 1, 1, 1];
    config.backbone.drop_path_rate = 0.0;
    config.neck.out_channels = 16;
    config.rpn.feat_channels = 16;
    config.roi_head.bbox_fc_channels = 32;
    config.roi_head.mask_channels = 16;
    config
}

/// The small detector; its BatchNorm layers use their running statistics.
fn detector(seed: u64) -> (MaskRcnn, Parameters) {
    let mut parameters = Parameters::new();
    let config = config::Model { norm_eval: true, ..small_model() };
    (MaskRcnn::new(&config, &mut parameters, Device::Cpu, seed).unwrap(), parameters)
}

/// Image `index` with two rectangular objects.
fn batch(index: usize) -> Batch {
    let size = (64, 96);
    let object = |x: usize, y: usize, width: usize, height: usize| {
        let mask = InstanceMask { frame: size, x, y, width, height, pixels: vec![1; width * height].into() };
        ([x as f32, y as f32, (x + width) as f32, (y + height) as f32], Some(mask))
    };
    let (boxes, masks) = [object(4 + 7 * index, 8, 30, 40), object(50, 3 + 5 * index, 24, 32)].into_iter().unzip();
    let meta = ImageMeta::plain(index as i64, format!("image {index}"), size);
    let images = (Tensor::arange(3 * 64 * 96, FLOAT) * (0.37 + index as f64)).cos().reshape([1, 3, 64, 96]);
    let images = Images::Values(images);
    Batch { images, metas: vec![meta], targets: vec![Target { boxes, labels: vec![index as i64, 2], masks }] }
}

/// The loss of an image; the sampling of anchors and proposals depends only on the image.
fn detector_loss(model: &MaskRcnn, index: usize) -> Tensor {
    model.forward_train(&batch(index), &mut StepRandom::new(0, index, 0)).unwrap().total().unwrap()
}

#[test]
fn the_detectors_gradients_of_two_workers_are_averaged() {
    let Some(()) = rank!(2) else { return };
    let communicator = Communicator::connect(DEADLINES).unwrap();
    let tensors = |parameters: &Parameters| -> Vec<Tensor> {
        parameters.trainable().map(|(_, tensor)| tensor.shallow_clone()).collect()
    };
    let (model, parameters) = detector(0);
    let alone = tensors(&parameters);
    let gradients = [0, 1].map(|index| {
        torch_ext::optim::clear_gradients(&alone).unwrap();
        torch_ext::autograd::backward(&detector_loss(&model, index)).unwrap();
        alone.iter().map(|tensor| tensor.grad().copy()).collect::<Vec<_>>()
    });

    // Ranks start with different parameters and buffers; all get rank 0's.
    let (model, parameters) = detector(communicator.rank() as u64);
    let together = tensors(&parameters);
    let buffer = Tensor::full([3], communicator.rank() as f64 + 5.0, FLOAT);
    let parallel = DataParallel::new(&communicator, &together, &[buffer.shallow_clone()], false).unwrap();
    assert!(together == alone && buffer == Tensor::full([3], 5.0, FLOAT));
    parallel.backward(&detector_loss(&model, communicator.rank()), true).unwrap();
    let mut differ = 0;
    for (index, (name, tensor)) in parameters.trainable().enumerate() {
        let (first, second) = (&gradients[0][index], &gradients[1][index]);
        let mean = (first + second) / 2.0;
        let length = f64::try_from(mean.norm()).unwrap();
        let off = f64::try_from((tensor.grad() - &mean).norm()).unwrap();
        assert!(off <= 1e-6 * length, "{name} is off by {off} of {length}");
        differ += usize::from(first != second);
    }
    assert!(2 * differ > together.len(), "only {differ} gradients depend on the image");
    drop(parallel);
    communicator.leave().unwrap();
}

/// All weights, the optimizer's state and the average, in one vector.
fn state(train_state: &TrainState<'_>) -> Tensor {
    let averages = train_state.ema.iter().flat_map(|ema| ema.averages().values()).map(|average| average.reshape([-1]));
    let weights = train_state.trained().iter().map(|(_, tensor)| tensor.detach().reshape([-1]));
    let optimizer = train_state.optimizer.state();
    let all: Vec<Tensor> = weights.chain(averages).chain(optimizer.values().map(|t| t.reshape([-1]))).collect();
    Tensor::cat(&all, 0)
}

fn assert_same_on_all(communicator: &Communicator, state: &Tensor) {
    let bytes: Vec<u8> = Vec::<f32>::try_from(state).unwrap().into_iter().flat_map(f32::to_le_bytes).collect();
    let all = communicator.all_gather_bytes(&bytes).unwrap();
    assert!(all.iter().all(|other| *other == bytes), "the ranks have different weights");
}

#[test]
fn an_overflow_on_one_rank_skips_the_update_on_all() {
    let Some(()) = rank!(2) else { return };
    // A loss scale at which every gradient overflows float16, and one at which none does.
    let (too_much, sound) = (1e30, 256.0);
    let communicator = Communicator::connect(DEADLINES).unwrap();
    let mut config = config::Config { model: small_model(), ..Default::default() };
    (config.train.amp, config.train.ema, config.optimizer.grad_clip) = (config::Amp::Fp16, 0.9, 1.0);
    let mut train_state = TrainState::new(&config, &communicator).unwrap();
    let before = state(&train_state);
    let rank = communicator.rank();
    // The ranks have different scales, so only one of them overflows.
    let mut step = |scales: [f64; 2], updates: bool| {
        train_state.loss_scale = Some(LossScale::new(scales[rank]));
        let index = StepIndex { epoch: 0, step_in_epoch: 0, step: 0, micro_steps: 1, updates };
        let outcome = train_state
            .train_step(&batch(rank), index, 0.01, StepVote::default(), &communicator, &Client::disconnected())
            .unwrap();
        let left = train_state.loss_scale.as_ref().unwrap().scale() / scales[rank];
        (outcome.skipped.is_some(), left, state(&train_state))
    };
    for scales in [[too_much, sound], [sound, too_much]] {
        let (skipped, left, now) = step(scales, true);
        assert!(skipped && left == 0.5 && now == before, "{scales:?}: a step that overflows on one rank");
        // An overflow in a micro-step affects the other rank at the next update.
        let (skipped, left, now) = step(scales, false);
        assert!(!skipped && left == 1.0 && now == before, "{scales:?}: a micro-step");
        let (skipped, left, now) = step([sound; 2], true);
        assert!(skipped && left == 0.5 && now == before, "{scales:?}: the update that the micro-step belongs to");
    }
    let (skipped, left, now) = step([sound; 2], true);
    assert!(!skipped && left == 1.0 && now != before, "a step without overflow");
    assert_same_on_all(&communicator, &now);
    drop(train_state);
    communicator.leave().unwrap();
}

#[test]
fn a_loss_that_is_not_finite_on_one_rank_skips_the_update_on_all() {
    let Some(()) = rank!(2) else { return };
    let communicator = Communicator::connect(DEADLINES).unwrap();
    let mut config = config::Config { model: small_model(), ..Default::default() };
    (config.train.on_nan, config.train.ema) = (config::OnNan::Skip, 0.9);
    let mut train_state = TrainState::new(&config, &communicator).unwrap();
    let rank = communicator.rank();
    let mut group = |micro_steps: usize, bad: Option<(usize, usize)>| {
        let mut skipped = false;
        for step in 0..micro_steps {
            let mut batch = batch(rank);
            if bad == Some((rank, step)) {
                let Images::Values(values) = &mut batch.images else { panic!("the batch has pixel values") };
                let _ = values.fill_(f64::NAN);
            }
            let index =
                StepIndex { epoch: 0, step_in_epoch: step, step, micro_steps, updates: step + 1 == micro_steps };
            skipped = train_state
                .train_step(&batch, index, 0.01, StepVote::default(), &communicator, &Client::disconnected())
                .unwrap()
                .skipped
                .is_some();
        }
        let buffers = train_state.parameters.buffers().map(|(_, buffer)| buffer.to_kind(FLOAT.0).reshape([-1]));
        (skipped, state(&train_state), Tensor::cat(&buffers.collect::<Vec<_>>(), 0))
    };
    let (_, weights, statistics) = group(2, None);
    for micro_steps in [2, 3] {
        for step in 0..micro_steps {
            for bad_rank in 0..2 {
                let (skipped, now, buffers) = group(micro_steps, Some((bad_rank, step)));
                let unchanged = now == weights && buffers == statistics;
                assert!(skipped && unchanged, "step {step} of {micro_steps} on rank {bad_rank}");
            }
        }
    }
    let (skipped, now, _) = group(3, None);
    assert!(!skipped && now != weights, "a finite update");
    assert_same_on_all(&communicator, &now);
    drop(train_state);
    communicator.leave().unwrap();
}

#[test]
fn ranks_with_different_parameters_are_an_error() {
    let Some(()) = rank!(2) else { return };
    let communicator = Communicator::connect(DEADLINES).unwrap();
    let rows = 2 + communicator.rank() as i64;
    let parameters = [Tensor::zeros([4], FLOAT), Tensor::zeros([rows, 3], FLOAT)].map(|p| p.set_requires_grad(true));
    let error = DataParallel::new(&communicator, &parameters, &[], false).err().unwrap();
    let message = error.to_string();
    assert!(message.contains("rank 1 and rank 0 have different parameters: number 1 is Float [3, 3]"), "{message}");
    communicator.leave().unwrap();
}

#[test]
fn a_killed_peer_is_an_error_that_names_the_phase() {
    let Some(()) = rank!(2 of which 1 is lost) else { return };
    let communicator = Communicator::connect(DEADLINES).unwrap();
    communicator.set_phase("training, epoch 1, step 7");
    communicator.barrier().unwrap();
    if communicator.rank() == 1 {
        std::process::abort();
    }
    let begin = Instant::now();
    let error = communicator.all_reduce_sum(&Tensor::zeros([4], FLOAT)).unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(error.kind(), ErrorKind::PeerLost);
    assert!(error.to_string().starts_with("rank 0 of 2, all-reduce during training, epoch 1, step 7: "), "{error}");
    communicator.abort().unwrap();
}

#[test]
fn a_used_port_and_a_missing_server_are_different_errors() {
    let rendezvous = Duration::from_millis(500);
    let error = || Communicator::connect(Deadlines { rendezvous, ..DEADLINES }).err().unwrap();
    match std::env::var(env::RANK).as_deref() {
        Ok("0") => {
            let error = error();
            assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
            assert!(error.to_string().contains("choose another MASTER_PORT"), "{error}");
        }
        Ok(_) => {
            let error = error();
            assert_eq!(error.kind(), ErrorKind::PeerLost, "{error}");
            assert!(error.to_string().contains("rank 1 of 2, rendezvous: the store at 127.0.0.1:"), "{error}");
        }
        Err(_) => {
            let test = "distributed::a_used_port_and_a_missing_server_are_different_errors";
            let taken = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = taken.local_addr().unwrap().port();
            finish(vec![rank_command(test, 0, 2, port).spawn().unwrap()]);
            drop(taken);
            finish(vec![rank_command(test, 1, 2, port).spawn().unwrap()]);
        }
    }
}

/// Other tests, and some of its own, under the real mpirun, with the library that scripts/mpi.sh builds.
mod by_mpi {
    use std::path::Path;
    use std::process::{Command, Output, Stdio};

    use super::*;

    /// `None`, with a SKIPPED line, if the library or mpirun is missing.
    fn mpirun(test: &str, ranks: usize) -> Option<Output> {
        let library = Path::new(env!("CARGO_BIN_EXE_fnet-worker")).with_file_name("libfnet_mpi.so");
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/mpirun");
        if !library.is_file() || !program.is_file() {
            println!("SKIPPED {test} under mpirun: run `make mpi`");
            return None;
        }
        let mut command = Command::new(program);
        command.env(env::MPI_LIBRARY, library);
        command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", &ranks.to_string()]);
        command.arg(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
        command.env(IS_RANK, "").env(env::DEVICE, "cpu").env(env::OMP_NUM_THREADS, "1").stdin(Stdio::null());
        Some(command.output().unwrap())
    }

    /// Asserts that the test passes on every rank.
    fn passes(test: &str, ranks: usize) {
        let Some(output) = mpirun(test, ranks) else { return };
        let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let passed = printed.matches("1 passed").count();
        assert!(output.status.success() && passed == ranks, "{test} on {ranks} ranks: {printed}{errors}");
    }

    #[test]
    fn collectives_give_correct_values() {
        if std::env::var_os(IS_RANK).is_none() {
            return [2, 3]
                .iter()
                .for_each(|&ranks| passes("distributed::by_mpi::collectives_give_correct_values", ranks));
        }
        let communicator = Communicator::connect(DEADLINES).unwrap();
        assert_eq!(
            (communicator.local_rank(), communicator.local_world_size()),
            (communicator.rank(), communicator.world_size())
        );
        check_collectives(&communicator);
        // Odd numbers, more than one MPI message, and types of other widths.
        let rank = communicator.rank() as i64;
        for kind in [Kind::Float, Kind::Double, Kind::Int64, Kind::Uint8] {
            for count in [1, 7, 1_000_003] {
                let value = Tensor::full([count], rank + 1, (kind, Device::Cpu));
                communicator.all_reduce_sum(&value).unwrap();
                let sum = (communicator.world_size() * (communicator.world_size() + 1) / 2) as i64;
                assert_eq!(value, Tensor::full([count], sum, (kind, Device::Cpu)), "{kind:?} {count}");
                let value = Tensor::full([count], rank, (kind, Device::Cpu));
                communicator.broadcast(&value, 1).unwrap();
                assert_eq!(value, Tensor::ones([count], (kind, Device::Cpu)), "{kind:?} {count}");
            }
        }
        communicator.leave().unwrap();
    }

    #[test]
    fn parallel_training_equals_training_alone() {
        for body in [
            "distributed::the_detectors_gradients_of_two_workers_are_averaged",
            "distributed::an_overflow_on_one_rank_skips_the_update_on_all",
            "distributed::ranks_with_different_parameters_are_an_error",
        ] {
            passes(body, 2);
        }
    }

    #[test]
    fn a_missing_rank_is_an_error_with_operation_rank_and_deadline() {
        if std::env::var_os(IS_RANK).is_none() {
            let test = "distributed::by_mpi::a_missing_rank_is_an_error_with_operation_rank_and_deadline";
            let Some(output) = mpirun(test, 2) else { return };
            let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(printed.contains("the error is correct"), "{printed}{errors}");
            // The ranks ended without MPI_Finalize, which must not look like success.
            assert!(!output.status.success(), "{printed}{errors}");
            return;
        }
        let collective = Duration::from_millis(500);
        let communicator = Communicator::connect(Deadlines { collective, ..DEADLINES }).unwrap();
        communicator.set_phase("training, epoch 1, step 7");
        communicator.barrier().unwrap();
        if communicator.rank() == 1 {
            std::thread::sleep(Duration::from_secs(60));
            return;
        }
        let begin = Instant::now();
        let error = communicator.all_reduce_sum(&Tensor::zeros([4], FLOAT)).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert_eq!(error.kind(), ErrorKind::PeerLost);
        let expected = "rank 0 of 2, all-reduce during training, epoch 1, step 7: MPI all-reduce number 2 (16 bytes) on \
                        rank 0 of 2 with a deadline of 0.5 s: not all other ranks took part in time";
        assert!(error.to_string().starts_with(expected), "{error}");
        // The ranks are out of sync, so later operations fail immediately.
        assert!(communicator.barrier().is_err() && communicator.abort().is_ok());
        println!("the error is correct");
        fnet_common::process::end(4);
    }
}
