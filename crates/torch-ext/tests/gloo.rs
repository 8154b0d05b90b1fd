//! Process groups over Gloo and the reducer.

#![allow(clippy::unwrap_used, clippy::panic)]

mod ranks;

use std::time::{Duration, Instant};

use ranks::{DEADLINE, FLOAT, SMALL, connect, gradients, leave, loss, net, one_rank, rank, values};
use tch::{Device, Kind, Tensor};
use torch_ext::ErrorKind;
use torch_ext::autograd::backward;
use torch_ext::distributed::{Reducer, Reduction};

#[test]
fn collectives_give_the_right_values_with_two_and_three_ranks() {
    let Some(()) = rank!(2, 3) else { return };
    let (store, group) = connect(DEADLINE);
    let (rank, world) = (group.rank() as f64, group.size() as f64);
    let ranks_sum = world * (world - 1.0) / 2.0;
    for (how, expected) in [
        (Reduction::Sum, ranks_sum),
        (Reduction::Mean, ranks_sum / world),
        (Reduction::Min, 0.0),
        (Reduction::Max, world - 1.0),
    ] {
        let value = Tensor::full([2, 3], rank, FLOAT);
        group.all_reduce(&value, how, DEADLINE).unwrap().wait(DEADLINE).unwrap();
        assert_eq!(value, Tensor::full([2, 3], expected, FLOAT), "{how:?}");
    }

    let value = Tensor::full([4], rank, FLOAT);
    group.broadcast(&value, 1, DEADLINE).unwrap().wait(DEADLINE).unwrap();
    assert_eq!(value, Tensor::full([4], 1.0, FLOAT));

    let input = Tensor::full([2], group.rank() as i64, (Kind::Int64, Device::Cpu));
    let outputs: Vec<_> = (0..group.size()).map(|_| input.zeros_like()).collect();
    let work = group.all_gather(&outputs, &input, DEADLINE).unwrap();
    work.wait(DEADLINE).unwrap();
    for (peer, output) in outputs.iter().enumerate() {
        assert_eq!(Vec::<i64>::try_from(output).unwrap(), [peer as i64; 2]);
    }
    assert_eq!(group.all_gather(&outputs[1..], &input, DEADLINE).err().unwrap().kind(), ErrorKind::Invalid);

    let gaps = Tensor::zeros([4, 4], FLOAT).slice(1, 0, 4, 2);
    assert_eq!(group.all_reduce(&gaps, Reduction::Sum, DEADLINE).err().unwrap().kind(), ErrorKind::Invalid);

    store.set(&format!("key {}", group.rank()), &[0, 255, 7]).unwrap();
    assert_eq!(store.prefixed("other").unwrap().add("count", 3).unwrap() % 3, 0);
    let other = (group.rank() + 1) % group.size();
    assert_eq!(store.get(&format!("key {other}"), DEADLINE).unwrap(), [0, 255, 7]);
    leave(&store, &group);
}

#[test]
fn the_reducer_leaves_the_mean_and_the_same_bits_in_every_step() {
    let Some(()) = rank!(2, 3, 4) else { return };
    let (store, group) = connect(DEADLINE);
    let world = group.size() as i64;
    let parameters = net();
    let mut expected: Vec<Tensor> = parameters.iter().map(Tensor::zeros_like).collect();
    let mut rounded: Vec<Tensor> = expected.iter().map(|zero| zero.to_kind(Kind::BFloat16)).collect();
    for rank in 0..world {
        backward(&loss(&parameters, &values(&[8, 17], 100 + rank))).unwrap();
        for ((sum, rounded), grad) in expected.iter_mut().zip(&mut rounded).zip(gradients(&parameters)) {
            let share = grad * (1.0 / world as f64);
            *rounded += share.to_kind(Kind::BFloat16);
            *sum += share;
        }
    }
    let reducer = Reducer::new(&group, &parameters, SMALL, false).unwrap();
    let x = values(&[8, 17], 100 + group.rank() as i64);
    let step = |reducer: &Reducer| {
        let loss = loss(&parameters, &x);
        reducer.backward(&loss, || ()).unwrap();
        gradients(&parameters)
    };
    let first = step(&reducer);
    for (grad, mean) in first.iter().zip(&expected) {
        assert!(f64::try_from((grad - mean).abs().max()).unwrap() < 1e-6);
        // Two values add up to the same in any order.
        assert!(world > 2 || grad == mean);
    }
    for _ in 0..3 {
        assert_eq!(step(&reducer), first);
    }
    drop(reducer);
    let reducer = Reducer::new(&group, &parameters, SMALL, true).unwrap();
    let compressed = step(&reducer);
    for ((grad, rounded), mean) in compressed.iter().zip(&rounded).zip(&expected) {
        assert!(grad.kind() == Kind::Float && grad == &grad.to_kind(Kind::BFloat16).to_kind(Kind::Float));
        assert!(world > 2 || grad == &rounded.to_kind(Kind::Float));
        assert!(f64::try_from((grad - mean).norm() / mean.norm()).unwrap() < 0.01);
    }
    let flat = Tensor::cat(&compressed.iter().map(|grad| grad.reshape([-1])).collect::<Vec<_>>(), 0);
    let bytes: Vec<u8> = Vec::<f32>::try_from(flat).unwrap().into_iter().flat_map(f32::to_le_bytes).collect();
    store.set(&format!("compressed {}", group.rank()), &bytes).unwrap();
    for rank in 0..world {
        assert_eq!(store.get(&format!("compressed {rank}"), DEADLINE).unwrap(), bytes, "rank {rank} has other bits");
    }
    leave(&store, &group);
}

#[test]
fn parameters_unused_on_one_or_all_ranks_do_not_hang_a_step() {
    let Some(()) = rank!(2) else { return };
    let (store, group) = connect(DEADLINE);
    let p: Vec<_> = (0..3).map(|i| Tensor::full([2], f64::from(i) + 1.0, FLOAT).set_requires_grad(true)).collect();
    let reducer = Reducer::new(&group, &p, SMALL, false).unwrap();
    for _ in 0..2 {
        // Rank 1 does not use p[1]; nobody uses p[2].
        let mut output = &p[0] * 4.0;
        if group.rank() == 0 {
            output += &p[1] * 6.0;
        }
        let loss = output.sum(Kind::Float);
        reducer.backward(&loss, || ()).unwrap();
        assert_eq!(p[0].grad(), Tensor::full([2], 4.0, FLOAT));
        assert_eq!(p[1].grad(), Tensor::full([2], 3.0, FLOAT));
        assert_eq!(p[2].grad(), Tensor::zeros([2], FLOAT));
        torch_ext::optim::clear_gradients(&p).unwrap();
    }
    leave(&store, &group);
}

#[test]
fn accumulated_passes_are_reduced_together() {
    let Some(()) = rank!(2) else { return };
    let (store, group) = connect(DEADLINE);
    let p = Tensor::full([2], 1.0, FLOAT).set_requires_grad(true);
    let scale = group.rank() as f64 + 1.0;
    for as_bfloat16 in [false, false, true, true] {
        let reducer = Reducer::new(&group, &[p.shallow_clone()], SMALL, as_bfloat16).unwrap();
        backward(&(&p * scale).sum(Kind::Float)).unwrap();
        assert_eq!(p.grad(), Tensor::full([2], scale, FLOAT));
        let loss = (&p * (10.0 * scale)).sum(Kind::Float);
        reducer.backward(&loss, || ()).unwrap();
        assert_eq!(p.grad(), Tensor::full([2], 16.5, FLOAT));
        torch_ext::optim::clear_gradients(&[p.shallow_clone()]).unwrap();
    }
    leave(&store, &group);
}

/// Ends this process as a kill from outside would.
fn die() {
    // SAFETY: kill takes two numbers.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

#[test]
fn a_killed_peer_is_an_error_in_the_survivors_backward() {
    let Some(()) = rank!(2 of which 1 is lost) else { return };
    let (_store, group) = connect(DEADLINE);
    let parameters = net();
    let reducer = Reducer::new(&group, &parameters, SMALL, false).unwrap();
    for step in 0.. {
        let loss = loss(&parameters, &values(&[8, 17], 5));
        if step == 2 && group.rank() == 1 {
            die();
        }
        let begin = Instant::now();
        let Err(error) = reducer.backward(&loss, || ()) else {
            torch_ext::optim::clear_gradients(&parameters).unwrap();
            continue;
        };
        assert_eq!((step, error.kind()), (2, ErrorKind::Collective), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5));
        std::mem::forget(reducer);
        group.abort(Duration::from_secs(5)).unwrap();
        return;
    }
}

/// Gloo tells the waiting end nothing of a connection that breaks off in the middle of a tensor.
#[test]
fn an_abort_ends_the_wait_for_the_rest_of_a_tensor_whose_sender_was_killed() {
    let Some(()) = rank!(2 of which 1 is lost) else { return };
    let (_store, group) = connect(DEADLINE);
    let value = Tensor::zeros([64 << 20], (Kind::Uint8, Device::Cpu));
    group.barrier(DEADLINE).unwrap().wait(DEADLINE).unwrap();
    let begin = Instant::now();
    let aborter = group.aborter().unwrap();
    let is_sender = group.rank() == 1;
    // The sender is nearly always in the middle of a tensor then.
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(if is_sender { 300 } else { 1000 }));
        if is_sender {
            die();
        }
        aborter.abort(Duration::from_secs(5)).unwrap();
    });
    let broadcast = || group.broadcast(&value, 1, DEADLINE)?.wait(DEADLINE);
    let error = loop {
        if let Err(error) = broadcast() {
            break error;
        }
    };
    let took = begin.elapsed();
    assert_eq!(error.kind(), ErrorKind::Collective, "{error}");
    assert!(took < Duration::from_secs(20), "{took:?}: {error}");
    other.join().unwrap();
    let error = broadcast().unwrap_err();
    assert!(error.message().contains("aborted"), "{error}");
}

#[test]
fn an_abort_from_another_thread_ends_what_waits_for_a_peer_that_lives() {
    let Some(()) = rank!(3) else { return };
    let (_store, group) = connect(DEADLINE);
    if group.rank() > 0 {
        // Takes no part in the collective, and asks the store nothing: its connections may be cut with the group's.
        std::thread::sleep(Duration::from_secs(2));
        group.abort(Duration::from_secs(5)).unwrap();
        return;
    }
    let aborter = group.aborter().unwrap();
    let begin = Instant::now();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        aborter.abort(Duration::from_secs(5)).unwrap();
    });
    let value = Tensor::zeros([4], FLOAT);
    let work = group.all_reduce(&value, Reduction::Sum, DEADLINE).unwrap();
    let error = work.wait(DEADLINE).unwrap_err();
    let took = begin.elapsed();
    assert_eq!(error.kind(), ErrorKind::Collective, "{error}");
    assert!(took < Duration::from_secs(10), "{took:?}: {error}");
    other.join().unwrap();
}

#[test]
fn a_peer_that_does_not_come_is_an_error_at_the_deadline() {
    let Some(()) = rank!(2) else { return };
    let (store, group) = connect(DEADLINE);
    let short = Duration::from_millis(500);
    if group.rank() == 0 {
        let value = Tensor::zeros([4], FLOAT);
        let begin = Instant::now();
        let work = group.all_reduce(&value, Reduction::Sum, short).unwrap();
        assert_eq!(work.wait(short).unwrap_err().kind(), ErrorKind::Collective);
        assert!(begin.elapsed() < Duration::from_secs(5));
        let error = store.get("never set", short).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Collective);
        assert!(error.message().contains("never set"), "{error}");
        store.set("seen", b"").unwrap();
    }
    store.get("seen", DEADLINE).unwrap();
    if store.add("left", 1).unwrap() == 2 {
        store.set("all left", b"").unwrap();
    }
    if group.rank() == 0 {
        store.get("all left", DEADLINE).unwrap();
    }
    group.abort(Duration::from_secs(5)).unwrap();
}

#[test]
fn without_a_driver_nccl_is_refused_with_the_remedy() {
    if torch_ext::cuda::probe_driver().is_ok() {
        eprintln!("SKIPPED without_a_driver_nccl_is_refused_with_the_remedy: this machine has a GPU");
        return;
    }
    let Some(()) = rank!(1) else { return };
    let (store, mut group) = connect(DEADLINE);
    let error = group.add_nccl(&store, 0, DEADLINE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert!(error.message().contains("--device cpu"), "{error}");
}
