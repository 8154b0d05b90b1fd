//! One rank's model, optimizer and gradients: the training step.

use std::time::{Duration, Instant};

use fnet_protocol::client::Client;
use fnet_protocol::message::Phase;
use tch::{Device, Tensor};
use torch_ext::cuda::{self, Downloader, Event};
use torch_ext::optim;

use super::agreement::{StepReport, Wishes, agree};
use super::bad_batch::{self, BadBatches};
use super::buffers;
use super::optimizer::Optimizer;
use super::place::StepPlace;
use super::{Ema, LossScale};
use crate::config::{Amp, Config, OnNan};
use crate::data::Batch;
use crate::distributed::{DataParallel, World};
use crate::error::{Context, Error, Result};
use crate::model::{Losses, MaskRcnn, Parameters, StepRandom};
use crate::process;

/// Seconds that the parts of a step took. On a GPU the launches are counted, unless
/// [`Learner::synchronise_timing`] makes each part wait for the device.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepTimes {
    /// Forward pass.
    pub forward: f64,
    /// Backward pass, with the all-reduce of the gradients that overlaps it.
    pub backward: f64,
    /// Exchange of the losses, which waits for the slowest rank.
    pub agreement: f64,
    /// Update of the weights.
    pub optimizer: f64,
    /// Part of `backward` and `agreement` in which this rank only waited for the others.
    pub waited: f64,
}

/// What a step gave, beside what it did to the weights.
#[derive(Debug)]
pub struct StepOutcome {
    /// The common view of all ranks.
    pub report: StepReport,
    /// L2 norm of the whole gradient before clipping, where it is clipped.
    pub grad_norm: Option<f64>,
    /// Why the update of this step was left out, with the weights as they were.
    pub skipped: Option<Skip>,
    /// Which ranks, losses and pictures were not finite.
    pub bad: Option<String>,
    /// The factor of this step's loss, in float16.
    pub loss_scale: Option<f64>,
    /// Positive proposals of this rank.
    pub positives: usize,
    /// Where the time went.
    pub times: StepTimes,
}

/// Why an update was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// A loss of its last step, or of an earlier one, was not finite on some rank.
    NotFinite,
    /// Its gradients overflowed float16.
    Overflow,
}

/// Everything that one rank trains.
pub struct Learner<'a> {
    /// The network.
    pub model: MaskRcnn,
    /// Its parameters and buffers by name.
    pub parameters: Parameters,
    /// The optimizer and its state.
    pub optimizer: Optimizer,
    /// Loss scale of float16 training.
    pub loss_scale: Option<LossScale>,
    /// Moving average of the weights.
    pub ema: Option<Ema>,
    pub(super) trained: Vec<(String, Tensor)>,
    /// The tensors of `trained`.
    tensors: Vec<Tensor>,
    parallel: DataParallel<'a>,
    amp: Amp,
    seed: u64,
    grad_clip: f64,
    on_nan: OnNan,
    /// Batches whose losses are not finite.
    pub(super) bad_batches: BadBatches,
    pub(super) held: Held,
    /// Copies the state of a GPU to the host beside collectives that may never end.
    pub(super) downloader: Option<Downloader>,
    /// The moving average stands in for the weights, for an evaluation.
    pub(super) averaged: bool,
    /// The weights are being changed: they belong to no step.
    pub(super) torn: bool,
    /// A loss since the last update was not finite: the next update is left out.
    spoiled: bool,
    synchronise: bool,
}

/// What a broken-off step may have changed, as it was after the last update.
#[derive(Debug)]
pub(super) struct Held {
    /// This rank's packed BatchNorm buffers ([`buffers::pack`]).
    pub own: Tensor,
    /// Those of rank 0, which are the model's.
    pub first: Tensor,
    /// The loss scale.
    pub loss_scale: Option<LossScale>,
    /// Where a GPU has done the last update, and all that changed the weights since.
    pub reached: Option<Event>,
}

impl<'a> Learner<'a> {
    /// Builds the model with its initial weights, equal on every rank, and what trains it.
    pub fn new(config: &Config, world: &'a World) -> Result<Self> {
        let seed = config.train.seed;
        let mut parameters = Parameters::new();
        let mut model =
            MaskRcnn::new(&config.model, &mut parameters, world.device(), seed).context("building the model")?;
        if config.model.sync_bn {
            model.synchronise_batch_norm(world.differentiable_sum());
        }
        let trained: Vec<(String, Tensor)> =
            parameters.trainable().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
        let tensors: Vec<Tensor> = trained.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
        let buffers: Vec<Tensor> = parameters.buffers().map(|(_, buffer)| buffer.shallow_clone()).collect();
        let ema = if config.train.ema > 0.0 { Some(Ema::new(config.train.ema, &trained)?) } else { None };
        let parallel = DataParallel::new(world, &tensors, &buffers)?;
        let packed = buffers::pack(&parameters)?;
        let downloader = match world.device() {
            Device::Cuda(index) => Some(Downloader::new(index)?),
            _ => None,
        };
        let loss_scale = (config.train.amp == Amp::Fp16).then(|| LossScale::new(config.train.loss_scale));
        Ok(Self {
            optimizer: Optimizer::new(&config.optimizer, &trained)?,
            parallel,
            bad_batches: BadBatches::default(),
            held: Held {
                own: packed.shallow_clone(),
                first: packed,
                loss_scale: loss_scale.clone(),
                reached: mark(world.device())?,
            },
            downloader,
            loss_scale,
            averaged: false,
            torn: false,
            spoiled: false,
            amp: config.train.amp,
            grad_clip: config.optimizer.grad_clip,
            on_nan: config.train.on_nan,
            synchronise: false,
            seed,
            ema,
            tensors,
            trained,
            model,
            parameters,
        })
    }

    /// The trained parameters by name, in the optimizer's order.
    pub fn trained(&self) -> &[(String, Tensor)] {
        &self.trained
    }

    /// The seed of the steps' random numbers.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether each part of a step waits for the device, so that [`StepTimes`] tells where a GPU's time goes. Off by
    /// default, for it costs speed.
    pub fn synchronise_timing(&mut self, on: bool) {
        self.synchronise = on;
    }

    /// Forward, backward with all-reduce, agreement, update.
    ///
    /// # Errors
    /// A usage error when a loss is not finite and `train.on_nan` is `stop`, or when gradients overflow float16 at every
    /// scale; a lost peer; memory.
    pub fn step(
        &mut self,
        batch: &Batch,
        place: StepPlace,
        learning_rate: f64,
        wishes: Wishes,
        world: &World,
        control: &Client,
    ) -> Result<StepOutcome> {
        let mut clock = Clock::new(self.synchronise.then(|| world.device()));
        control.phase(Phase::Forward);
        let losses = self.forward(batch, place, world)?;
        let total = losses.total()?;
        let sent = losses.send(&total)?;
        let forward = clock.lap()?;
        control.phase(Phase::Backward);
        let mut waited = self.backward(&total, place)?;
        // A GPU has the whole backward pass before it when they arrive, so it goes on while the ranks agree.
        let losses_of_rank = sent.arrive()?;
        let backward = clock.lap()?;
        control.phase(Phase::AllReduce);
        let report = agree(world, &losses_of_rank, wishes)?;
        let mut bad = None;
        if !report.not_finite.is_empty() {
            let told = self.bad_batches.examine(&losses_of_rank, batch, place, world)?;
            self.refuse(&report, &told, place)?;
            bad = Some(told);
        }
        if self.spoiled {
            self.forget_group()?;
        }
        let exchanged = if place.updates { Some(self.exchange(world)?) } else { None };
        let agreement = clock.lap()?;
        if place.updates {
            // An update that was given to a GPU behind a collective would take what an abort leaves of it for gradients.
            waited += self.parallel.wait_for_others()?;
            world.check_unbroken()?;
        }
        let backward = backward + clock.lap()?;
        control.phase(Phase::Optimizer);
        let loss_scale = self.loss_scale.as_ref().map(LossScale::scale);
        let (grad_norm, skipped) = match (place.updates, self.spoiled) {
            (false, _) => (None, None),
            (true, true) => (None, Some(Skip::NotFinite)),
            (true, false) => self.update(learning_rate)?,
        };
        if let Some((own, first)) = exchanged {
            self.held = self.held_with(own, first)?;
            self.spoiled = false;
        }
        let times = StepTimes {
            forward,
            backward,
            agreement,
            optimizer: clock.lap()?,
            waited: waited.as_secs_f64() + agreement,
        };
        self.torn = false;
        Ok(StepOutcome { report, grad_norm, skipped, bad, loss_scale, positives: losses.positives, times })
    }

    /// The buffers as this step leaves them, and rank 0's: whichever rank is lost, another one has the model whole.
    fn exchange(&self, world: &World) -> Result<(Tensor, Tensor)> {
        let own = buffers::pack(&self.parameters)?;
        let first = if world.is_first() { own.shallow_clone() } else { own.f_empty_like()? };
        world.enqueue_broadcast(&first, 0)?;
        Ok((own, first))
    }

    /// Takes the present buffers for those of the last update. `first` are rank 0's, where they are others.
    pub(super) fn hold(&mut self, first: Option<Tensor>) -> Result<()> {
        let own = buffers::pack(&self.parameters)?;
        let first = first.unwrap_or_else(|| own.shallow_clone());
        self.held = self.held_with(own, first)?;
        Ok(())
    }

    fn held_with(&self, own: Tensor, first: Tensor) -> Result<Held> {
        Ok(Held { own, first, loss_scale: self.loss_scale.clone(), reached: mark(self.parameters.device())? })
    }

    /// Before an evaluation: every rank takes rank 0's buffers of the last update, whose running statistics are those that are
    /// evaluated, as in the reference.
    ///
    /// # Errors
    /// If libtorch fails.
    pub(super) fn take_first_buffers(&mut self) -> Result<()> {
        self.held.own = self.held.first.shallow_clone();
        buffers::put_back(&self.parameters, &self.held.own)
    }

    /// Exchanges the weights with their moving average, if there is one: once before an evaluation and once after it.
    ///
    /// # Errors
    /// If libtorch fails; the weights are then of no step.
    pub(super) fn swap_average(&mut self) -> Result<()> {
        let Some(ema) = &mut self.ema else { return Ok(()) };
        self.torn = true;
        ema.swap(&self.trained)?;
        self.held.reached = mark(self.parameters.device())?;
        self.torn = false;
        self.averaged = !self.averaged;
        Ok(())
    }

    /// The losses of this rank's pictures.
    fn forward(&self, batch: &Batch, place: StepPlace, world: &World) -> Result<Losses> {
        let _autocast = self.model.autocast(self.amp)?;
        let mut random = StepRandom::new(self.seed, world.rank(), place.step as u64);
        self.model.forward_train(batch, &mut random).with_context(|| format!("pictures {}", bad_batch::names(batch)))
    }

    /// Adds the gradients of this step, whose losses sum up to `total`; all-reduces them, overlapping with their
    /// computation, if it ends with an update. Returns how long this rank waited for the others.
    fn backward(&mut self, total: &Tensor, place: StepPlace) -> Result<Duration> {
        let scale = self.loss_scale.as_ref().map_or(1.0, LossScale::scale) / place.micro_steps as f64;
        let mut total = total.shallow_clone();
        if scale != 1.0 {
            total = total.f_mul_scalar(scale)?;
        }
        self.parallel.backward(&total, place.updates)
    }

    /// Unscales, clips, and applies the gradients. Returns their norm if they are clipped, and why the update was left
    /// out, if it was.
    fn update(&mut self, learning_rate: f64) -> Result<(Option<f64>, Option<Skip>)> {
        let overflow =
            self.loss_scale.as_ref().map(|scale| optim::unscale(&self.tensors, scale.scale())).transpose()?;
        let norm = (self.grad_clip > 0.0).then(|| optim::clip_norm(&self.tensors, self.grad_clip)).transpose()?;
        let [overflow, norm] = arrive([overflow, norm])?;
        if let (Some(loss_scale), Some(overflow)) = (&mut self.loss_scale, overflow) {
            loss_scale.update(overflow == 0.0)?;
            if overflow != 0.0 {
                self.clear_gradients()?;
                return Ok((None, Some(Skip::Overflow)));
            }
        }
        self.torn = true;
        self.optimizer.step(learning_rate)?;
        self.clear_gradients()?;
        if let Some(ema) = &mut self.ema {
            ema.update(&self.trained)?;
        }
        Ok((norm, None))
    }

    /// Acts on losses that are not finite, of which `told` says where they were: an error, or the update is left out.
    fn refuse(&mut self, report: &StepReport, told: &str, place: StepPlace) -> Result<()> {
        match self.on_nan {
            OnNan::Stop => Err(Error::usage(format!(
                "{} not finite at epoch {}, step {} ({told}); lower optimizer.lr, set optimizer.grad_clip{}, or go on past \
                 such steps with --set train.on_nan=skip",
                report.not_finite.join(", "),
                place.epoch + 1,
                place.iteration + 1,
                if self.amp == Amp::Fp16 { ", set train.amp to \"bf16\" (float16 ends at 65504)" } else { "" },
            ))),
            OnNan::Skip => {
                self.spoiled = true;
                Ok(())
            }
        }
    }

    /// Drops what the steps since the last update have left: gradients and running statistics.
    fn forget_group(&mut self) -> Result<()> {
        self.clear_gradients()?;
        buffers::put_back(&self.parameters, &self.held.own)
    }

    /// Drops the gradients of steps that did not update.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn clear_gradients(&mut self) -> Result<()> {
        Ok(optim::clear_gradients(&self.tensors)?)
    }
}

/// Values of a device on the host, with one wait for both.
fn arrive(values: [Option<Tensor>; 2]) -> Result<[Option<f64>; 2]> {
    let on_host = match values.each_ref() {
        [Some(first), Some(second)] => cuda::to_host(&Tensor::f_stack(&[first, second], 0)?)?,
        [Some(one), None] | [None, Some(one)] => cuda::to_host(one)?,
        [None, None] => return Ok([None, None]),
    };
    let mut found = Vec::<f32>::try_from(on_host.f_reshape([-1])?)?.into_iter().map(f64::from);
    Ok(values.map(|value| value.and_then(|_| found.next())))
}

/// The present end of what a GPU was given; the CPU has always done all.
fn mark(device: Device) -> Result<Option<Event>> {
    match device {
        Device::Cuda(index) => Ok(Some(Event::record(index)?)),
        _ => Ok(None),
    }
}

/// Measures the parts of a step.
struct Clock {
    last: Instant,
    device: Option<Device>,
}

impl Clock {
    /// A clock that waits for `device` at each lap, if there is one.
    fn new(device: Option<Device>) -> Self {
        Self { last: Instant::now(), device }
    }

    /// Seconds since the last lap.
    fn lap(&mut self) -> Result<f64> {
        self.device.map_or(Ok(()), process::synchronise)?;
        let now = Instant::now();
        let seconds = now.duration_since(self.last).as_secs_f64();
        self.last = now;
        Ok(seconds)
    }
}

#[cfg(test)]
mod tests;
