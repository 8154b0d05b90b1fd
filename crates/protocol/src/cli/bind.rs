//! Which CPUs workers may use.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Which CPUs the workers of a node may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// The CPUs near each worker's GPU, divided among the workers; without GPUs, equal shares.
    Auto,
    /// All CPUs for every worker.
    None,
    /// One list per worker, in the order of the workers.
    Lists(Vec<CpuList>),
}

impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Bind::Auto),
            "none" => Ok(Bind::None),
            lists => {
                let lists = lists.strip_suffix(';').unwrap_or(lists).split(';').map(str::parse);
                let lists: Vec<CpuList> = lists.collect::<Result<_, _>>().map_err(|why| {
                    format!("{why}; expected auto, none, or a list of CPUs per worker, for example 0-7;8-15")
                })?;
                Ok(Bind::Lists(lists))
            }
        }
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bind::Auto => f.write_str("auto"),
            Bind::None => f.write_str("none"),
            Bind::Lists(lists) => f.write_str(&lists.iter().map(ToString::to_string).collect::<Vec<_>>().join(";")),
        }
    }
}

/// CPU numbers in the kernel's notation: `0-3,8,10-11`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuList(BTreeSet<usize>);

impl CpuList {
    /// The largest CPU number.
    pub const MAX: usize = 8191;

    /// The numbers in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + use<'_> {
        self.0.iter().copied()
    }

    /// Number of CPUs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `cpu` is in the list.
    pub fn contains(&self, cpu: usize) -> bool {
        self.0.contains(&cpu)
    }

    /// The CPUs that are also in `other`.
    #[must_use]
    pub fn within(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    /// The CPUs that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }
}

impl FromIterator<usize> for CpuList {
    fn from_iter<T: IntoIterator<Item = usize>>(cpus: T) -> Self {
        Self(cpus.into_iter().collect())
    }
}

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |part: &str| format!("{part:?} is neither a CPU nor a range of CPUs");
        let mut cpus = BTreeSet::new();
        for part in text.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<usize>().ok().filter(|&cpu| cpu <= Self::MAX);
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
                _ => return Err(wrong(part)),
            }
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for &cpu in &self.0 {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => runs.push((cpu, cpu)),
            }
        }
        let run = |&(first, last): &(usize, usize)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        f.write_str(&runs.iter().map(run).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_and_written_as_the_kernel_does() {
        for (text, expected) in [("0-3,8,10-11", "0-3,8,10-11"), ("5", "5"), (" 2,1,0\n", "0-2"), ("7,7", "7")] {
            assert_eq!(text.parse::<CpuList>().unwrap().to_string(), expected);
        }
        for wrong in ["", "3-1", "a", "1-", "0,,1", "9000000", "-1"] {
            assert!(wrong.parse::<CpuList>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn each_worker_has_its_list() {
        let lists = |text: &str| match text.parse() {
            Ok(Bind::Lists(lists)) => lists.iter().map(ToString::to_string).collect::<Vec<_>>(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(lists("0-7;8-15"), ["0-7", "8-15"]);
        assert_eq!(lists("3"), ["3"]);
        assert_eq!(("auto".parse(), "none".parse()), (Ok(Bind::Auto), Ok(Bind::None)));
        for wrong in ["", "0;;1", "off", "0:1"] {
            let why = wrong.parse::<Bind>().unwrap_err();
            assert!(why.contains("auto, none"), "{wrong:?}: {why}");
        }
    }
}
