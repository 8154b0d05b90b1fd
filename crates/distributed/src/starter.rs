//! Detects which launcher started this process, and so how it learns its rank.

use fnet_common::{Error, Result};
use fnet_protocol::env;

use super::placement::{RankPlacement, Rendezvous, missing, number};

/// How a process learns its rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launch {
    /// From its environment.
    Placement(RankPlacement),
    /// From MPI, because mpirun (or srun with an MPI plugin) started it.
    Mpi {
        /// Number of ranks according to the launcher; MPI must report the same.
        ranks: usize,
    },
}

/// Variables for rank and number of ranks: of mpirun of Open MPI, of MPICH and Intel MPI, and of MVAPICH2.
const MPIRUN: [[&str; 2]; 3] = [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
    ["PMI_RANK", "PMI_SIZE"],
    ["MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"],
];

const SLURM_STEP_ID: &str = "SLURM_STEP_ID";
const SLURM_STEP_NUM_TASKS: &str = "SLURM_STEP_NUM_TASKS";
const SLURM_STEP_NUM_NODES: &str = "SLURM_STEP_NUM_NODES";
const SLURM_PROCID: &str = "SLURM_PROCID";
const SLURM_LOCALID: &str = "SLURM_LOCALID";
/// Set for each rank by `srun --mpi=pmix`.
const PMIX_RANK: &str = "PMIX_RANK";

impl Launch {
    /// Detects the launcher from the environment, in this order: RANK and WORLD_SIZE, which the user or any launcher may
    /// have set; mpirun; srun; otherwise a job of one rank. `with_mpi` says whether the library for MPI is available.
    /// Errors: a usage error with a remedy if several ranks were started without a way to connect: each would train
    /// alone, all in the same folder.
    pub fn find(variable: impl Fn(&str) -> Option<String>, with_mpi: bool) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        if variable(env::RANK).is_some() || variable(env::WORLD_SIZE).is_some() {
            return RankPlacement::from_variables(variable).map(Self::Placement);
        }
        // mpirun comes first: on a Slurm cluster it starts its daemons with srun, and the ranks inherit their variables.
        let step = SlurmStep::find(&variable)?;
        if let Some((name, ranks)) = mpirun_ranks(&variable, step.as_ref())? {
            return if with_mpi { Ok(Self::Mpi { ranks }) } else { Err(without_mpi(name, ranks)) };
        }
        let Some(step) = step else { return RankPlacement::from_variables(variable).map(Self::Placement) };
        let has_address = variable(env::MASTER_ADDR).is_some() && variable(env::MASTER_PORT).is_some();
        let has_pmi = variable(PMIX_RANK).is_some() || variable(MPIRUN[1][0]).is_some();
        match (has_address, with_mpi && has_pmi) {
            (true, _) => step.place(&variable).map(Self::Placement),
            (false, true) => Ok(Self::Mpi { ranks: step.tasks }),
            (false, false) => Err(step.without_address(&variable, with_mpi)),
        }
    }
}

/// The rank that this process will probably have, for messages before the rendezvous.
pub fn likely_rank(variable: impl Fn(&str) -> Option<String>) -> usize {
    let names = [env::RANK].into_iter().chain(MPIRUN.map(|[rank, _]| rank)).chain([PMIX_RANK]);
    let in_step = variable(SLURM_STEP_ID).is_some();
    let names = names.chain(in_step.then_some(SLURM_PROCID));
    names.filter_map(&variable).find_map(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// The number of ranks started by mpirun, with the name of its variable; `None` for one rank.
fn mpirun_ranks(
    variable: &impl Fn(&str) -> Option<String>,
    step: Option<&SlurmStep>,
) -> Result<Option<(&'static str, usize)>> {
    for [rank_name, size_name] in MPIRUN {
        let rank = number::<usize>(variable, rank_name)?;
        let Some(ranks) = number::<usize>(variable, size_name)?.filter(|ranks| *ranks > 1) else { continue };
        // srun's PMI sets the variables of MPICH's mpirun to srun's numbers.
        if step.is_some_and(|step| step.tasks == ranks && Some(step.rank) == rank) {
            continue;
        }
        return Ok(Some((size_name, ranks)));
    }
    Ok(None)
}

fn without_mpi(name: &str, ranks: usize) -> Error {
    Error::usage(format!(
        "mpirun started {ranks} ranks ({name}={ranks}), but libfnet_mpi.so is not beside this fnet-worker, so each would \
         train alone. Start them with fnet-launch (--gpus {ranks}, or --device cpu --nproc {ranks}; --nnodes for several \
         machines) or torchrun, or build the library: `make mpi`"
    ))
}

/// This process as a task of a Slurm step with several tasks.
struct SlurmStep {
    rank: usize,
    tasks: usize,
}

impl SlurmStep {
    /// `None` unless srun certainly started this process: a batch script has variables of the job, but not of a step.
    fn find(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        if variable(SLURM_STEP_ID).is_none() {
            return Ok(None);
        }
        let (rank, tasks) = (number(variable, SLURM_PROCID)?, number(variable, SLURM_STEP_NUM_TASKS)?);
        Ok(match (rank, tasks) {
            (Some(rank), Some(tasks)) if tasks > 1 => Some(Self { rank, tasks }),
            _ => None,
        })
    }

    fn place(&self, variable: &impl Fn(&str) -> Option<String>) -> Result<RankPlacement> {
        if self.rank >= self.tasks {
            let Self { rank, tasks } = self;
            return Err(Error::usage(format!("{SLURM_PROCID}={rank} is not below {SLURM_STEP_NUM_TASKS}={tasks}")));
        }
        let local_rank = number(variable, SLURM_LOCALID)?.ok_or_else(|| missing(SLURM_LOCALID, SLURM_STEP_ID))?;
        let nodes = number::<usize>(variable, SLURM_STEP_NUM_NODES)?;
        Ok(RankPlacement {
            rank: self.rank,
            world_size: self.tasks,
            local_rank,
            local_world_size: (nodes == Some(1)).then_some(self.tasks),
            rendezvous: Some(Rendezvous::from_variables(variable, self.rank)?),
        })
    }

    fn without_address(&self, variable: &impl Fn(&str) -> Option<String>, with_mpi: bool) -> Error {
        let missing: Vec<&str> =
            [env::MASTER_ADDR, env::MASTER_PORT].into_iter().filter(|name| variable(name).is_none()).collect();
        let by_mpi = match with_mpi {
            true => "; or use MPI: srun --mpi=pmix",
            false => "",
        };
        Error::usage(format!(
            "srun started {} tasks, but the environment has no {}, so they cannot connect. In the batch script, before \
             srun: export MASTER_ADDR=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1) MASTER_PORT=29500 \
             (any free port of that node){by_mpi}. Or start one task per node: srun --ntasks-per-node=1 fnet-launch \
             with --nnodes",
            self.tasks,
            missing.join(" and no ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use fnet_common::ErrorKind;

    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn lookup(variables: Variables<'_>) -> impl Fn(&str) -> Option<String> {
        move |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    fn find(variables: Variables<'_>, with_mpi: bool) -> Result<Launch> {
        Launch::find(lookup(variables), with_mpi)
    }

    fn alone() -> Launch {
        Launch::Placement(RankPlacement {
            rank: 0,
            world_size: 1,
            local_rank: 0,
            local_world_size: Some(1),
            rendezvous: None,
        })
    }

    const OPEN_MPI: Variables<'static> =
        &[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2"), ("PMIX_RANK", "1")];
    const STEP: [(&str, &str); 5] = [
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_TASKS", "4"),
        ("SLURM_STEP_NUM_NODES", "2"),
        ("SLURM_PROCID", "3"),
        ("SLURM_LOCALID", "1"),
    ];
    const ADDRESS: [(&str, &str); 2] = [("MASTER_ADDR", "node1"), ("MASTER_PORT", "29500")];

    #[test]
    fn ranks_of_mpirun_use_mpi_or_are_refused() {
        assert_eq!(find(OPEN_MPI, true).unwrap(), Launch::Mpi { ranks: 2 });
        for (variables, name) in [
            (OPEN_MPI, "OMPI_COMM_WORLD_SIZE=2"),
            (&[("PMI_RANK", "0"), ("PMI_SIZE", "2")][..], "PMI_SIZE=2"),
            (&[("MV2_COMM_WORLD_RANK", "0"), ("MV2_COMM_WORLD_SIZE", "2")], "MV2_COMM_WORLD_SIZE=2"),
        ] {
            let error = find(variables, false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            for words in [name, "`make mpi`", "fnet-launch"] {
                assert!(error.to_string().contains(words), "{error}");
            }
        }
    }

    #[test]
    fn one_rank_of_mpirun_or_srun_is_a_job_of_one_rank() {
        for with_mpi in [false, true] {
            for variables in [
                &[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")][..],
                &[("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_PROCID", "0")],
                // A batch script of a job with eight tasks: srun did not start it.
                &[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0")],
                &[],
            ] {
                assert_eq!(find(variables, with_mpi).unwrap(), alone(), "{variables:?}");
            }
        }
    }

    #[test]
    fn the_users_rank_has_priority_over_mpirun_and_srun() {
        let user = [("RANK", "0"), ("WORLD_SIZE", "2"), ADDRESS[0], ADDRESS[1]];
        for others in [OPEN_MPI, &STEP] {
            let variables = [&user[..], others].concat();
            let Launch::Placement(place) = find(&variables, true).unwrap() else { panic!("not the user's place") };
            assert_eq!((place.rank, place.world_size), (0, 2));
        }
        assert!(find(&[("WORLD_SIZE", "2"), OPEN_MPI[0], OPEN_MPI[1]], true).is_err());
    }

    #[test]
    fn tasks_of_srun_take_their_rank_from_it() {
        let Launch::Placement(place) = find(&[&STEP[..], &ADDRESS].concat(), false).unwrap() else {
            panic!("no place")
        };
        assert_eq!((place.rank, place.world_size, place.local_rank, place.local_world_size), (3, 4, 1, None));
        let rendezvous = place.rendezvous.unwrap();
        assert_eq!((rendezvous.host.as_str(), rendezvous.port, rendezvous.is_server), ("node1", 29500, false));

        let one_node = [STEP[0], STEP[1], ("SLURM_STEP_NUM_NODES", "1"), STEP[3], ("SLURM_LOCALID", "3")];
        let Launch::Placement(place) = find(&[&one_node[..], &ADDRESS].concat(), false).unwrap() else {
            panic!("no place")
        };
        assert_eq!((place.local_rank, place.local_world_size), (3, Some(4)));
    }

    #[test]
    fn tasks_of_srun_that_cannot_connect_say_what_is_missing() {
        let error = find(&STEP, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("4 tasks, but the environment has no MASTER_ADDR and no MASTER_PORT"));
        let error = find(&[&STEP[..], &ADDRESS[..1]].concat(), false).unwrap_err();
        assert!(error.to_string().contains("has no MASTER_PORT, so"), "{error}");
        // With Slurm's MPI plugins they can connect without an address, if this program supports MPI.
        for plugin in [&[("PMIX_RANK", "3")][..], &[("PMI_RANK", "3"), ("PMI_SIZE", "4")]] {
            let variables = [&STEP[..], plugin].concat();
            assert_eq!(find(&variables, true).unwrap(), Launch::Mpi { ranks: 4 });
            assert!(find(&variables, false).unwrap_err().to_string().contains("srun started 4 tasks"));
        }
        assert!(find(&STEP, true).unwrap_err().to_string().contains("--mpi=pmix"));
    }

    /// Open MPI's and MPICH's mpirun start one daemon per node with srun; its step is not that of the ranks.
    #[test]
    fn the_step_of_mpiruns_daemons_is_not_used_for_the_ranks() {
        for ranks in [
            &[("OMPI_COMM_WORLD_RANK", "5"), ("OMPI_COMM_WORLD_SIZE", "8")][..],
            &[("PMI_RANK", "3"), ("PMI_SIZE", "8")],
            &[("PMI_RANK", "0"), ("PMI_SIZE", "4")],
        ] {
            let variables = [&STEP[..], &ADDRESS, ranks].concat();
            assert!(matches!(find(&variables, true).unwrap(), Launch::Mpi { .. }), "{ranks:?}");
            assert!(find(&variables, false).unwrap_err().to_string().starts_with("mpirun started"));
        }
    }

    #[test]
    fn the_likely_rank_is_that_of_any_launcher() {
        for (variables, rank) in [
            (&[("RANK", "2"), ("OMPI_COMM_WORLD_RANK", "1")][..], 2),
            (OPEN_MPI, 1),
            (&STEP, 3),
            (&[("SLURM_PROCID", "3")], 0),
            (&[("RANK", "x")], 0),
            (&[], 0),
        ] {
            assert_eq!(likely_rank(lookup(variables)), rank, "{variables:?}");
        }
    }
}
