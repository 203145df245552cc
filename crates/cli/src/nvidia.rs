//! The NVIDIA cards of this machine, as nvidia-smi tells of them. `tch` says neither which card a CUDA device is nor what it can do.

use std::sync::OnceLock;

/// A card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    uuid: String,
    /// Compute capability, such as (8, 0).
    pub capability: (u32, u32),
    pub free_bytes: u64,
}

impl Card {
    /// Whether its tensor cores multiply bf16: from Ampere on.
    pub fn multiplies_bf16(&self) -> bool {
        self.capability >= (8, 0)
    }
}

/// The card that is a CUDA device, if it is known.
pub fn card(index: usize) -> Option<Card> {
    static LISTED: OnceLock<Vec<Card>> = OnceLock::new();
    let listed = LISTED.get_or_init(|| {
        let query = ["--query-gpu=uuid,compute_cap,memory.free", "--format=csv,noheader,nounits"];
        let output = std::process::Command::new("nvidia-smi").args(query).output();
        output.map_or_else(|_| Vec::new(), |output| parse(&String::from_utf8_lossy(&output.stdout)))
    });
    let variable = |name| std::env::var(name).ok();
    // nvidia-smi lists cards by their place on the bus, and so does CUDA if it is told to, as this program tells it.
    let by_bus = variable("CUDA_DEVICE_ORDER").as_deref() == Some("PCI_BUS_ID");
    let found = visible(listed, variable("CUDA_VISIBLE_DEVICES").as_deref(), by_bus)?.get(index).copied().cloned();
    if found.is_none() {
        tracing::debug!(index, by_bus, "nvidia-smi does not tell which card this device is");
    }
    found
}

/// A line for each card; empty if a line is not as expected.
fn parse(listed: &str) -> Vec<Card> {
    let card = |line: &str| {
        let [uuid, capability, free] = line.split(',').map(str::trim).collect::<Vec<_>>().try_into().ok()?;
        let (major, minor) = capability.split_once('.')?;
        let free_bytes = free.parse::<u64>().ok()?.checked_mul(1 << 20)?;
        Some(Card { uuid: uuid.to_owned(), capability: (major.parse().ok()?, minor.parse().ok()?), free_bytes })
    };
    let lines = listed.lines().filter(|line| !line.trim().is_empty());
    lines.map(card).collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// The cards that CUDA shows this process, in its order; none if that is not known. `named` is `CUDA_VISIBLE_DEVICES`: places in the list of
/// all cards or beginnings of their identifiers, up to the first that is neither.
fn visible<'a>(listed: &'a [Card], named: Option<&str>, by_bus: bool) -> Option<Vec<&'a Card>> {
    if !by_bus && listed.len() != 1 {
        return None;
    }
    let Some(named) = named else { return Some(listed.iter().collect()) };
    let find = |name: &str| match name.parse::<usize>() {
        Ok(place) => listed.get(place),
        Err(_) => listed.iter().find(|card| name.starts_with("GPU-") && card.uuid.starts_with(name)),
    };
    Some(named.split(',').map_while(|name| find(name.trim())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `nvidia-smi --query-gpu=uuid,compute_cap,memory.free --format=csv,noheader,nounits` prints them.
    const TWO: &str = "GPU-5b1f0c1e-aaaa, 9.0, 143167\nGPU-77aa20d4-bbbb, 7.5, 14910\n";

    #[test]
    fn cards_are_found_by_what_cuda_shows() {
        let cards = parse(TWO);
        assert_eq!(cards.iter().map(|card| card.free_bytes >> 20).collect::<Vec<_>>(), [143_167, 14_910]);
        assert_eq!(cards.iter().map(Card::multiplies_bf16).collect::<Vec<_>>(), [true, false]);
        let shown = |named, by_bus| {
            visible(&cards, named, by_bus).map(|cards| cards.iter().map(|card| card.capability.0).collect::<Vec<_>>())
        };
        assert_eq!(shown(None, true), Some(vec![9, 7]));
        assert_eq!(shown(Some("1,0"), true), Some(vec![7, 9]));
        assert_eq!(shown(Some("GPU-77"), true), Some(vec![7]));
        // What follows an entry that names no card is hidden.
        assert_eq!(shown(Some("1,-1,0"), true), Some(vec![7]));
        assert_eq!(shown(Some(""), true), Some(vec![]));
        assert_eq!(shown(Some("MIG-1234"), true), Some(vec![]));
        // It is not known which of two CUDA lists first; a single one is known.
        assert_eq!(shown(None, false), None);
        assert_eq!(visible(&cards[1..], None, false), Some(vec![&cards[1]]));
    }

    #[test]
    fn other_answers_name_no_card() {
        for other in [
            "",
            "No devices were found\n",
            "GPU-1, 9.0, [N/A]\n",
            "GPU-1, [N/A], 10\n",
            "GPU-1, 8.0, 99999999999999999999\n",
        ] {
            assert_eq!(parse(other), [], "{other}");
        }
    }
}
