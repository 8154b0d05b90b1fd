//! An exponential moving average of the weights.

use indexmap::IndexMap;
use tch::Tensor;

use fnet_common::{Error, Result};

/// Averages of the trained parameters. After update `n`, `average = decay * average + (1 - decay) * parameter`. The first
/// updates use a smaller decay, `min(decay, (1 + n) / (10 + n))`, so that the initial weights lose influence quickly.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    updates: u64,
    averages: IndexMap<String, Tensor>,
}

impl Ema {
    /// Starts from the current values of `parameters`.
    pub fn new(decay: f64, parameters: &[(String, Tensor)]) -> Result<Self> {
        let averages = parameters
            .iter()
            .map(|(name, parameter)| Ok((name.clone(), parameter.f_detach_copy()?)))
            .collect::<Result<_>>()?;
        Ok(Self { decay, updates: 0, averages })
    }

    /// Adds the values after an update.
    pub fn update(&mut self, parameters: &[(String, Tensor)]) -> Result<()> {
        let n = self.updates as f64;
        let weight = 1.0 - self.decay.min((1.0 + n) / (10.0 + n));
        tch::no_grad(|| {
            for ((_, average), (_, parameter)) in self.averages.iter_mut().zip(parameters) {
                let _ = average.f_lerp_(&parameter.detach(), weight)?;
            }
            Ok::<_, tch::TchError>(())
        })?;
        self.updates += 1;
        Ok(())
    }

    /// Number of updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The averages by parameter name.
    pub fn averages(&self) -> &IndexMap<String, Tensor> {
        &self.averages
    }

    /// Restores stored `averages`, by parameter name.
    /// Errors: a data error unless they belong to the same parameters.
    pub fn restore(&mut self, updates: u64, averages: &IndexMap<String, Tensor>) -> Result<()> {
        for (name, average) in &mut self.averages {
            let stored = averages.get(name).filter(|stored| stored.size() == average.size());
            let stored = stored.ok_or_else(|| {
                Error::data(format!("it has no moving average of {name} with shape {:?}", average.size()))
            })?;
            average.f_copy_(stored)?;
        }
        if let Some(name) = averages.keys().find(|name| !self.averages.contains_key(*name)) {
            return Err(Error::data(format!("it has a moving average of {name}, which is not a weight of the model")));
        }
        self.updates = updates;
        Ok(())
    }

    /// Restarts from the current values of `parameters`.
    pub fn restart(&mut self, parameters: &[(String, Tensor)]) -> Result<()> {
        *self = Self::new(self.decay, parameters)?;
        Ok(())
    }

    /// Swaps the averages with the values of `parameters`: once before an evaluation and once after it.
    pub fn swap(&mut self, parameters: &[(String, Tensor)]) -> Result<()> {
        tch::no_grad(|| {
            for ((_, average), (_, parameter)) in self.averages.iter_mut().zip(parameters) {
                let kept = parameter.f_detach_copy()?;
                parameter.shallow_clone().f_copy_(average)?;
                average.f_copy_(&kept)?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(value: f32) -> Vec<(String, Tensor)> {
        vec![("weight".into(), Tensor::from_slice(&[value, 2.0 * value]))]
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn the_average_follows_the_parameters() {
        let mut ema = Ema::new(0.5, &parameters(1.0)).unwrap();
        ema.update(&parameters(2.0)).unwrap();
        // The first update's decay is (1 + 0) / (10 + 0) = 0.1.
        let first = values(&ema.averages()["weight"]);
        assert!((first[0] - 1.9).abs() < 1e-6 && (first[1] - 3.8).abs() < 1e-6, "{first:?}");
        for _ in 0..60 {
            ema.update(&parameters(4.0)).unwrap();
        }
        assert!((values(&ema.averages()["weight"])[0] - 4.0).abs() < 1e-4);
    }

    #[test]
    fn averages_of_other_parameters_are_an_error_that_names_them() {
        let stored = |name: &str, values: &[f32]| IndexMap::from([(name.to_owned(), Tensor::from_slice(values))]);
        let mut extra = stored("weight", &[1.0, 2.0]);
        extra.extend(stored("bias", &[1.0]));
        for (averages, expected) in [
            (stored("bias", &[1.0, 2.0]), "no moving average of weight"),
            (stored("weight", &[1.0]), "no moving average of weight with shape [2]"),
            (extra, "a moving average of bias, which is not a weight"),
        ] {
            let mut ema = Ema::new(0.9, &parameters(1.0)).unwrap();
            let error = ema.restore(3, &averages).unwrap_err().to_string();
            assert!(error.contains(expected) && ema.updates() == 0, "{error}");
        }
    }

    #[test]
    fn swapping_twice_changes_nothing() {
        let current = parameters(3.0);
        let mut ema = Ema::new(0.9, &parameters(1.0)).unwrap();
        ema.swap(&current).unwrap();
        assert_eq!(values(&current[0].1), [1.0, 2.0]);
        ema.swap(&current).unwrap();
        assert_eq!(values(&current[0].1), [3.0, 6.0]);
        assert_eq!(values(&ema.averages()["weight"]), [1.0, 2.0]);
    }
}
