//! Which rank this process is, of how many, and where they meet: as torchrun, srun and mpirun say it.

use crate::error::RanksError;

/// A process's rank, and where all ranks meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub rank: usize,
    /// Number of ranks.
    pub size: usize,
    /// Rank among those of the same machine, from 0.
    pub local: usize,
    /// Number of ranks on the same machine; 1 if nobody says.
    pub here: usize,
    /// Machine of the first rank.
    pub host: String,
    /// Port there.
    pub port: u16,
    /// The network interface to use, if one was named.
    pub interface: Option<String>,
}

/// Names of rank, number of ranks, and both on the same machine: torchrun's, then srun's, then mpirun's.
const NAMES: [[&str; 4]; 3] = [
    ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"],
    ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"],
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
];

impl Place {
    /// What the environment says; none if it names no ranks, or a single one.
    ///
    /// # Errors
    /// If it names several, and not where they meet, or if a number is none.
    pub fn of_environment() -> Result<Option<Self>, RanksError> {
        Self::of(&|name| std::env::var(name).ok())
    }

    fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, RanksError> {
        // A batch script has srun's variables too, and is one process. Only what srun starts is a step.
        let is_set = |[rank, size, ..]: &[&str; 4]| {
            let is_step = !rank.starts_with("SLURM") || variable("SLURM_STEP_ID").is_some();
            is_step && variable(rank).is_some() && variable(size).is_some()
        };
        let Some([rank, size, local, here]) = NAMES.into_iter().find(is_set) else {
            return Ok(None);
        };
        let number = |name| {
            let text = variable(name).unwrap_or_default();
            let number = text.trim().parse::<usize>();
            number.map_err(|_| RanksError::Environment { variable: name, fault: format!("{text:?} is not a number") })
        };
        let (rank_at, n) = (number(rank)?, number(size)?);
        if n <= 1 {
            return Ok(None);
        }
        if rank_at >= n {
            let fault = format!("rank {rank_at} of {n}: they count from 0");
            return Err(RanksError::Environment { variable: rank, fault });
        }
        let present = |variable_name: &'static str| {
            let fault = format!("is not set, and {size} is {n}");
            variable(variable_name).ok_or(RanksError::Environment { variable: variable_name, fault })
        };
        let port = present("MASTER_PORT")?;
        let port = port.trim().parse().map_err(|_| RanksError::Environment {
            variable: "MASTER_PORT",
            fault: format!("{port:?} is not a port"),
        })?;
        let or = |name, otherwise| if variable(name).is_some() { number(name) } else { Ok(otherwise) };
        let (local, here) = (or(local, rank_at)?, or(here, 1)?.max(1));
        let (host, interface) = (present("MASTER_ADDR")?, variable("GLOO_SOCKET_IFNAME"));
        Ok(Some(Self { rank: rank_at, size: n, local, here, host, port, interface }))
    }

    /// Whether all ranks are on one machine, by the address where they meet.
    pub(crate) fn is_local(&self) -> bool {
        self.host == "localhost" || self.host == "::1" || self.host.starts_with("127.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Option<Place>, String> {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Place::of(&variable).map_err(|error| error.to_string())
    }

    #[test]
    fn launchers_are_understood() {
        let meeting = [("MASTER_ADDR", "node7"), ("MASTER_PORT", "29500")];
        let with = |own: &[(&'static str, &'static str)]| place(&[own, &meeting[..]].concat());
        let expected = |rank, local| {
            let (host, port, interface) = ("node7".to_owned(), 29500, None);
            Ok(Some(Place { rank, size: 4, local, here: 1, host, port, interface }))
        };
        assert_eq!(with(&[("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")]), expected(3, 1));
        assert_eq!(with(&[("SLURM_PROCID", "2"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0")]), Ok(None));
        let step = [("SLURM_PROCID", "2"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0"), ("SLURM_STEP_ID", "0")];
        assert_eq!(with(&step), expected(2, 0));
        assert_eq!(with(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "4")]), expected(0, 0));
        // torchrun inside of a job of srun.
        let inside = [("RANK", "1"), ("WORLD_SIZE", "4"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")];
        assert_eq!(with(&inside), expected(1, 1));
        assert_eq!(with(&[]), Ok(None));
        assert_eq!(place(&[("RANK", "0"), ("WORLD_SIZE", "1")]), Ok(None), "alone: there is nobody to meet");
    }

    #[test]
    fn what_is_missing_is_named() {
        #[track_caller]
        fn check(variables: &[(&str, &str)], part: &str) {
            let error = place(variables).expect_err("it is not complete");
            assert!(error.contains(part), "no {part:?} in {error}");
        }
        let ranks = [("RANK", "1"), ("WORLD_SIZE", "2")];
        check(&ranks, "MASTER_PORT: is not set, and WORLD_SIZE is 2");
        check(&[&ranks[..], &[("MASTER_PORT", "1")]].concat(), "MASTER_ADDR: is not set");
        check(&[&ranks[..], &[("MASTER_PORT", "x")]].concat(), "MASTER_PORT: \"x\" is not a port");
        check(&[("RANK", "2"), ("WORLD_SIZE", "2")], "RANK: rank 2 of 2");
        check(&[("RANK", "one"), ("WORLD_SIZE", "2")], "RANK: \"one\" is not a number");
    }
}
