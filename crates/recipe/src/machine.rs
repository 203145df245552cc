//! Machines to plan runs for: the profiles of `configs/machines`, embedded in the library, and measured ones.

use std::path::Path;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::embedded::{MACHINES, parsed};
use crate::error::RecipeError;
use crate::parse::parse;

/// Speed and size of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The file's name, such as `a100-40g`.
    #[serde(skip_deserializing)]
    pub name: String,
    /// Description of the machine, and the source of the numbers.
    pub description: String,
    /// Whether the numbers are a vendor's instead of measured.
    pub estimate: bool,
    /// Cores of the host's processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<usize>,
    /// Memory of the host; none if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_memory_gib: Option<f64>,
    /// Memory of the accelerator that computes blocks; none if the host's processor does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_memory_gib: Option<f64>,
    /// Fastest f32 matrix product, in 1e9 operations per second.
    pub f32_gflops: f64,
    /// Fastest bf16 matrix product with f32 sums, in 1e9 operations per second.
    pub bf16_gflops: f64,
    /// Bandwidth of the memory in which blocks are computed, in 1e9 bytes per second.
    pub memory_gb_per_s: f64,
    /// Bandwidth of the disk, in 1e9 bytes per second.
    pub disk_gb_per_s: f64,
}

impl Profile {
    /// Parses a profile called `name`; errors refer to `file`.
    pub fn parse(text: &str, file: &Path, name: &str) -> Result<Self, RecipeError> {
        let profile = Self { name: name.to_owned(), ..parse::<Self>(text, file)? };
        let required = [
            ("f32_gflops", profile.f32_gflops),
            ("bf16_gflops", profile.bf16_gflops),
            ("memory_gb_per_s", profile.memory_gb_per_s),
            ("disk_gb_per_s", profile.disk_gb_per_s),
        ];
        let given = [("host_memory_gib", profile.host_memory_gib), ("device_memory_gib", profile.device_memory_gib)];
        let given = given.into_iter().filter_map(|(key, value)| Some((key, value?)));
        for (key, value) in required.into_iter().chain(given) {
            if !(value.is_finite() && value > 0.0) {
                let allowed = format!("positive and finite (in {})", file.display());
                return Err(RecipeError::Value { key, value: value.to_string(), allowed });
            }
        }
        Ok(profile)
    }

    /// The profile as TOML for [`Self::parse`], without its name, which is that of the file.
    pub fn to_toml(&self) -> String {
        let mut table = toml::Table::try_from(self).expect("a profile is plain data");
        table.remove("name");
        table.to_string()
    }

    /// Memory of the host in bytes.
    pub fn host_bytes(&self) -> Option<u64> {
        self.host_memory_gib.map(bytes)
    }

    /// Memory of the accelerator in bytes.
    pub fn device_bytes(&self) -> Option<u64> {
        self.device_memory_gib.map(bytes)
    }
}

fn bytes(gib: f64) -> u64 {
    (gib * f64::from(1 << 30)) as u64
}

/// The profile of `configs/machines` with this name.
pub fn find_machine(name: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|profile| profile.name == name)
}

/// The names of all profiles of `configs/machines`, sorted.
pub fn machine_names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|profile| profile.name.as_str())
}

static PROFILES: LazyLock<Vec<Profile>> = LazyLock::new(|| {
    let profile = |(name, text): &(&str, &str)| {
        let path = Path::new("configs/machines").join(format!("{name}.toml"));
        parsed(Profile::parse(text, &path, name))
    };
    MACHINES.iter().map(profile).collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Profile, String> {
        Profile::parse(text, Path::new("my.toml"), "my").map_err(|error| error.to_string())
    }

    #[test]
    fn comes_back_from_toml() {
        let embedded = find_machine("rtx-4090").unwrap();
        assert_eq!((embedded.device_bytes(), embedded.estimate), (Some(24 << 30), true));
        let measured = Profile { host_memory_gib: None, device_memory_gib: None, cores: None, ..embedded.clone() };
        for profile in [embedded, &measured] {
            let again = Profile::parse(&profile.to_toml(), Path::new("my.toml"), "rtx-4090").unwrap();
            assert_eq!(again, *profile);
        }
    }

    #[test]
    fn refuses_what_no_machine_has() {
        let text = find_machine("a100-80g").unwrap().to_toml();
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let error = parse(text).expect_err("must be refused");
            assert!(error.contains(expected), "{error}");
        }
        let error = "memory_gb_per_s = 0: must be positive and finite (in my.toml)";
        check(&text.replace("2039.0", "0.0"), error);
        check(&text.replace("2039.0", "nan"), "memory_gb_per_s = NaN: must be");
        check(&text.replace("device_memory_gib = 80.0", "device_memory_gib = -1.0"), "device_memory_gib = -1: must be");
        check(&text.replace("estimate = true", ""), "missing key `estimate`");
        check(&format!("{text}\nwatts = 300"), "unknown key `watts`");
    }
}
