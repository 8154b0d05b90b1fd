//! One rank's model, optimizer and gradients: the training step.

use std::time::{Duration, Instant};

use tch::{Device, Tensor};
use torch_ext::cuda::{self, Downloader, Event};

use fnet_common::process;
use fnet_common::{Context, Error, Result};
use fnet_config::{Amp, Config, GradCompression, OnNan};
use fnet_data::Batch;
use fnet_distributed::{Communicator, DataParallel};
use fnet_model::{Losses, MaskRcnn, Parameters, StepRandom};
use fnet_protocol::client::Client;
use fnet_protocol::message::Phase;

use super::bad_batch::{self, BadBatches};
use super::buffers;
use super::learning_rate::Rate;
use super::optimizer::{Optimizer, is_norm};
use super::progress::StepIndex;
use super::step_vote::{StepReport, StepVote, sync_step};
use super::{Ema, LossScale};

/// Seconds that the parts of a step took. On a GPU these are the times of the kernel launches, unless
/// [`TrainState::synchronize_timing`] is on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepTimes {
    /// Forward pass.
    pub forward: f64,
    /// Backward pass, with the all-reduce of the gradients that overlaps it.
    pub backward: f64,
    /// `sync_step`, which waits for the slowest rank.
    pub step_vote: f64,
    /// Update of the weights.
    pub optimizer: f64,
    /// Part of `backward` and `step_vote` in which this rank waited for the others.
    pub waited: f64,
}

/// The result of a step.
#[derive(Debug)]
pub struct StepOutcome {
    /// The losses and decisions of all ranks.
    pub report: StepReport,
    /// L2 norm of the whole gradient before clipping, if it is clipped.
    pub grad_norm: Option<f64>,
    /// Why the update of this step was skipped.
    pub skipped: Option<Skip>,
    /// Which ranks, losses and images were not finite.
    pub bad: Option<String>,
    /// The loss scale of this step, with float16.
    pub loss_scale: Option<f64>,
    /// Positive proposals of this rank.
    pub positives: usize,
    /// Seconds of its parts.
    pub times: StepTimes,
}

/// Why an update was skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// A loss of one of its micro-steps was not finite on some rank.
    NotFinite,
    /// Its gradients overflowed float16.
    Overflow,
}

/// Everything that one rank trains.
pub struct TrainState<'a> {
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
    parallel: DataParallel<'a>,
    config: &'a Config,
    /// Batches whose losses are not finite.
    pub(super) bad_batches: BadBatches,
    pub(super) last_good: LastGoodState,
    /// Copies the state from a GPU to the host even while a collective hangs.
    pub(super) downloader: Option<Downloader>,
    /// The weights and their moving average are swapped for an evaluation.
    pub(super) averaged: bool,
    /// The weights are being updated: they belong to no step.
    pub(super) update_in_progress: bool,
    /// A loss since the last update was not finite: the next update is skipped.
    spoiled: bool,
    synchronize: bool,
}

/// What an aborted step may have changed, as it was after the last update.
#[derive(Debug)]
pub(super) struct LastGoodState {
    /// This rank's packed BatchNorm buffers ([`buffers::pack`]).
    pub own: Tensor,
    /// Rank 0's packed buffers, which belong to the saved model.
    pub first: Tensor,
    pub loss_scale: Option<LossScale>,
    /// Recorded on a GPU after the last operation that changed the weights.
    pub reached: Option<Event>,
}

impl<'a> TrainState<'a> {
    /// Builds the model with its initial weights, which are equal on every rank, and the optimizer.
    pub fn new(config: &'a Config, communicator: &'a Communicator) -> Result<Self> {
        let (mut parameters, device) = (Parameters::new(), communicator.device());
        let mut model =
            MaskRcnn::new(&config.model, &mut parameters, device, config.train.seed).context("building the model")?;
        if config.model.sync_bn {
            model.synchronize_batch_norm(communicator.differentiable_sum());
        }
        let trained: Vec<(String, Tensor)> =
            parameters.trained().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
        let tensors: Vec<Tensor> = trained.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
        // Frozen parameters are broadcast once, as buffers are: they have no gradients to wait for.
        let frozen = parameters.trainable().filter(|(name, _)| parameters.is_frozen(name));
        let buffers: Vec<Tensor> =
            parameters.buffers().chain(frozen).map(|(_, tensor)| tensor.shallow_clone()).collect();
        let ema = if config.train.ema > 0.0 { Some(Ema::new(config.train.ema, &trained)?) } else { None };
        let as_bfloat16 = config.train.grad_compression == GradCompression::Bf16;
        let parallel = DataParallel::new(communicator, &tensors, &buffers, as_bfloat16)?;
        let packed = buffers::pack(&parameters)?;
        let downloader = match device {
            Device::Cuda(index) => Some(Downloader::new(index)?),
            _ => None,
        };
        let loss_scale = (config.train.amp == Amp::Fp16).then(|| LossScale::new(config.train.loss_scale));
        Ok(Self {
            optimizer: Optimizer::new(&config.optimizer, &trained, |name| {
                is_norm(name, |name| parameters.get(name).is_some())
            })?,
            parallel,
            bad_batches: BadBatches::default(),
            last_good: LastGoodState {
                own: packed.shallow_clone(),
                first: packed,
                loss_scale: loss_scale.clone(),
                reached: record_event(device)?,
            },
            downloader,
            loss_scale,
            averaged: false,
            update_in_progress: false,
            spoiled: false,
            config,
            synchronize: false,
            ema,
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
        self.config.train.seed
    }

    /// Makes each part of a step wait for the device, so that [`StepTimes`] shows where a GPU spends its time. Off by
    /// default because it is slower.
    pub fn synchronize_timing(&mut self, on: bool) {
        self.synchronize = on;
    }

    /// Forward pass, backward pass with all-reduce, `sync_step`, update.
    /// Errors: a usage error when a loss is not finite and `train.on_nan` is `stop`, or when gradients overflow float16
    /// at every scale; a lost peer; lack of memory.
    pub fn train_step(
        &mut self,
        batch: &Batch,
        index: StepIndex,
        learning_rate: impl Into<Rate>,
        vote: StepVote,
        communicator: &Communicator,
        control: &Client,
    ) -> Result<StepOutcome> {
        let mut clock = Clock::new(self.synchronize.then(|| communicator.device()));
        control.phase(Phase::Forward);
        let losses = self.forward(batch, index, communicator)?;
        let total = losses.total()?;
        let sent = losses.send(&total)?;
        let forward = clock.lap()?;
        control.phase(Phase::Backward);
        let mut waited = self.backward(&total, index)?;
        // A GPU has just begun the backward pass when the losses arrive, so it computes while the ranks synchronize.
        let losses_of_rank = sent.arrive()?;
        let backward = clock.lap()?;
        control.phase(Phase::AllReduce);
        let report = sync_step(communicator, &losses_of_rank, vote)?;
        let mut bad = None;
        if !report.not_finite.is_empty() {
            let details = self.bad_batches.examine(&losses_of_rank, batch, index, communicator)?;
            self.handle_not_finite(&report, &details, index)?;
            bad = Some(details);
        }
        if self.spoiled {
            self.discard_accumulated()?;
        }
        let exchanged = if index.updates { Some(self.exchange(communicator)?) } else { None };
        let step_vote = clock.lap()?;
        if index.updates {
            // An update that is queued on a GPU behind an aborted collective would use its leftovers as gradients.
            waited += self.parallel.wait_for_others()?;
            communicator.check_unbroken()?;
        }
        let backward = backward + clock.lap()?;
        control.phase(Phase::Optimizer);
        let loss_scale = self.loss_scale.as_ref().map(LossScale::scale);
        let (grad_norm, skipped) = match (index.updates, self.spoiled) {
            (false, _) => (None, None),
            (true, true) => (None, Some(Skip::NotFinite)),
            (true, false) => self.update(learning_rate.into())?,
        };
        if let Some((own, first)) = exchanged {
            self.last_good = self.last_good_with(own, first)?;
            self.spoiled = false;
        }
        let times = StepTimes {
            forward,
            backward,
            step_vote,
            optimizer: clock.lap()?,
            waited: waited.as_secs_f64() + step_vote,
        };
        self.update_in_progress = false;
        Ok(StepOutcome { report, grad_norm, skipped, bad, loss_scale, positives: losses.positives, times })
    }

    /// This rank's buffers after this step, and rank 0's: if any rank is lost, another one has the whole model.
    fn exchange(&self, communicator: &Communicator) -> Result<(Tensor, Tensor)> {
        let own = buffers::pack(&self.parameters)?;
        let first = if communicator.is_first() { own.shallow_clone() } else { own.f_empty_like()? };
        communicator.enqueue_broadcast(&first, 0)?;
        Ok((own, first))
    }

    /// Records the current buffers as those of the last update. `first` are rank 0's, if they differ.
    pub(super) fn hold(&mut self, first: Option<Tensor>) -> Result<()> {
        let own = buffers::pack(&self.parameters)?;
        let first = first.unwrap_or_else(|| own.shallow_clone());
        self.last_good = self.last_good_with(own, first)?;
        Ok(())
    }

    fn last_good_with(&self, own: Tensor, first: Tensor) -> Result<LastGoodState> {
        Ok(LastGoodState {
            own,
            first,
            loss_scale: self.loss_scale.clone(),
            reached: record_event(self.parameters.device())?,
        })
    }

    /// Before an evaluation: loads rank 0's buffers of the last update on every rank, so that all evaluate with the same
    /// running statistics, as in MMDetection.
    pub(super) fn take_first_buffers(&mut self) -> Result<()> {
        self.last_good.own = self.last_good.first.shallow_clone();
        buffers::put_back(&self.parameters, &self.last_good.own)
    }

    /// Swaps the weights with their moving average, if there is one: once before an evaluation and once after it. After an
    /// error the weights belong to no step.
    pub(super) fn swap_average(&mut self) -> Result<()> {
        let Some(ema) = &mut self.ema else { return Ok(()) };
        self.update_in_progress = true;
        ema.swap(&self.trained)?;
        self.last_good.reached = record_event(self.parameters.device())?;
        self.update_in_progress = false;
        self.averaged = !self.averaged;
        Ok(())
    }

    /// The losses of this rank's images.
    fn forward(&self, batch: &Batch, index: StepIndex, communicator: &Communicator) -> Result<Losses> {
        let _autocast = self.model.autocast(self.config.train.amp)?;
        let mut random = StepRandom::new(self.seed(), communicator.rank(), index.step as u64);
        self.model.forward_train(batch, &mut random).with_context(|| format!("images {}", bad_batch::names(batch)))
    }

    /// Adds the gradients of `total`, the sum of this step's losses. If the step ends with an update, all-reduces them while
    /// they are computed. Returns how long this rank waited for the others.
    fn backward(&mut self, total: &Tensor, index: StepIndex) -> Result<Duration> {
        let scale = self.loss_scale.as_ref().map_or(1.0, LossScale::scale) / index.micro_steps as f64;
        let mut total = total.shallow_clone();
        if scale != 1.0 {
            total = total.f_mul_scalar(scale)?;
        }
        self.parallel.backward(&total, index.updates)
    }

    /// Unscales, clips, and applies the gradients. Returns their norm if they are clipped, and why the update was skipped,
    /// if it was.
    fn update(&mut self, learning_rate: Rate) -> Result<(Option<f64>, Option<Skip>)> {
        let overflow = self.loss_scale.as_ref().map(|scale| self.optimizer.unscale(scale.scale())).transpose()?;
        let maximum = self.config.optimizer.grad_clip;
        let norm = (maximum > 0.0).then(|| self.optimizer.clip_norm(maximum)).transpose()?;
        let [overflow, norm] = arrive([overflow, norm])?;
        if let (Some(loss_scale), Some(overflow)) = (&mut self.loss_scale, overflow) {
            loss_scale.update(overflow == 0.0)?;
            if overflow != 0.0 {
                self.optimizer.clear_gradients()?;
                return Ok((None, Some(Skip::Overflow)));
            }
        }
        self.update_in_progress = true;
        self.optimizer.step(learning_rate)?;
        self.optimizer.clear_gradients()?;
        if let Some(ema) = &mut self.ema {
            ema.update(&self.trained)?;
        }
        Ok((norm, None))
    }

    /// Handles losses that are not finite, described by `details`: returns an error, or marks the update as skipped.
    fn handle_not_finite(&mut self, report: &StepReport, details: &str, index: StepIndex) -> Result<()> {
        match self.config.train.on_nan {
            OnNan::Stop => Err(Error::usage(format!(
                "{} not finite at epoch {}, step {} ({details}); lower optimizer.lr, set optimizer.grad_clip{}, or skip such \
                 steps with --set train.on_nan=skip",
                report.not_finite.join(", "),
                index.epoch + 1,
                index.step_in_epoch + 1,
                if self.config.train.amp == Amp::Fp16 {
                    ", set train.amp to \"bf16\" (float16 ends at 65504)"
                } else {
                    ""
                },
            ))),
            OnNan::Skip => {
                self.spoiled = true;
                Ok(())
            }
        }
    }

    /// Discards the gradients and running statistics of the steps since the last update.
    fn discard_accumulated(&mut self) -> Result<()> {
        self.optimizer.clear_gradients()?;
        buffers::put_back(&self.parameters, &self.last_good.own)
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

/// Records an event after all work queued on a GPU; `None` on the CPU, which queues none.
fn record_event(device: Device) -> Result<Option<Event>> {
    match device {
        Device::Cuda(index) => Ok(Some(Event::record(index)?)),
        _ => Ok(None),
    }
}

/// A stopwatch for the parts of a step.
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
        self.device.map_or(Ok(()), process::synchronize)?;
        let now = Instant::now();
        let seconds = now.duration_since(self.last).as_secs_f64();
        self.last = now;
        Ok(seconds)
    }
}

#[cfg(test)]
mod tests;
