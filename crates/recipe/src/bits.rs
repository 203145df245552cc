//! Average bits instead of one width for all linears.

use oq_quant_core::Bits;
use serde::{Deserialize, Serialize};

use crate::RecipeError;
use crate::recipe::refused;

/// Default widths. 7 bits cost nearly as much as 8.
const CHOICES: [u32; 6] = [2, 3, 4, 5, 6, 8];

/// `[bits]`: each linear gets its own width, chosen by how much it costs the model's predictions. The scheme's bits are then ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BitBudget {
    /// Maximum bits per code, averaged over all quantized weights and without scales and zero points; such as 3.25.
    pub average: f64,
    /// Widths to choose from, the fewest bits first.
    #[serde(default = "choices")]
    pub choices: Vec<Bits>,
}

fn choices() -> Vec<Bits> {
    CHOICES.map(|bits| Bits::new(bits).expect("2 to 8")).to_vec()
}

impl BitBudget {
    /// An average, with the default widths.
    pub fn new(average: f64) -> Self {
        Self { average, choices: choices() }
    }

    pub(crate) fn validate(&self) -> Result<(), RecipeError> {
        let listed = list(&self.choices);
        let (Some(least), Some(most)) = (self.choices.first(), self.choices.last()) else {
            return Err(refused("bits.choices", listed, "one width or more"));
        };
        if !self.choices.is_sorted_by(|a, b| a < b) {
            return Err(refused("bits.choices", listed, "widths in ascending order, none twice"));
        }
        if !(f64::from(least.get())..=f64::from(most.get())).contains(&self.average) {
            return Err(refused("bits.average", self.average, format!("{least} to {most}, the ends of bits.choices")));
        }
        Ok(())
    }
}

/// Widths as written in a recipe file.
pub(crate) fn list(choices: &[Bits]) -> String {
    let numbers: Vec<String> = choices.iter().map(Bits::to_string).collect();
    format!("[{}]", numbers.join(", "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{Method, Overrides, Recipe, RecipeFile};

    fn resolve(file: &str, overrides: &Overrides) -> Result<Recipe, RecipeError> {
        let scheme = "w3a16g64".parse().unwrap();
        let file = RecipeFile::parse(&format!("scheme = \"w3a16g64\"\n{file}"), Path::new("my.toml")).unwrap();
        Recipe::resolve(scheme, None, Some(&file), overrides)
    }

    fn bits(widths: &[u32]) -> Vec<Bits> {
        widths.iter().map(|&width| Bits::new(width).unwrap()).collect()
    }

    #[test]
    fn the_command_line_has_the_last_word() {
        let none = Overrides::default;
        let budget = |file, overrides: &Overrides| resolve(file, overrides).unwrap().bits;
        assert_eq!(budget("", &none()), None);
        let usual = Some(BitBudget { average: 3.25, choices: bits(&[2, 3, 4, 5, 6, 8]) });
        assert_eq!(budget("bits.average = 3.25", &none()), usual);
        assert_eq!(budget("", &Overrides { bits: Some(3.25), ..none() }), usual);
        let typed = Overrides { bits: Some(2.5), bit_choices: Some(bits(&[2, 4])), ..none() };
        let expected = Some(BitBudget { average: 2.5, choices: bits(&[2, 4]) });
        assert_eq!(budget("bits = { average = 4, choices = [4, 7] }", &typed), expected);
        let typed = Overrides { bits: Some(5.0), ..none() };
        let expected = Some(BitBudget { average: 5.0, choices: bits(&[4, 7]) });
        assert_eq!(budget("bits = { average = 4, choices = [4, 7] }", &typed), expected);
    }

    #[test]
    fn sensitivity_is_measured_on_text() {
        let rtn = Overrides { method: Some(Method::Rtn), ..Overrides::default() };
        assert!(!resolve("", &rtn).unwrap().reads_text());
        assert!(resolve("bits.average = 3", &rtn).unwrap().reads_text());
        assert!(resolve("", &Overrides::default()).unwrap().reads_text());
    }

    #[test]
    fn bad_budgets() {
        #[track_caller]
        fn check(average: Option<f64>, choices: Option<&[u32]>, expected: &str) {
            let overrides = Overrides { bits: average, bit_choices: choices.map(bits), ..Overrides::default() };
            assert_eq!(resolve("", &overrides).expect_err("must be refused").to_string(), expected);
        }
        let ends = "must be 2 to 8, the ends of bits.choices";
        check(Some(1.9), None, &format!("bits.average = 1.9: {ends}"));
        check(Some(8.5), None, &format!("bits.average = 8.5: {ends}"));
        check(Some(f64::NAN), None, &format!("bits.average = NaN: {ends}"));
        check(Some(4.5), Some(&[3, 4]), "bits.average = 4.5: must be 3 to 4, the ends of bits.choices");
        check(Some(3.0), Some(&[]), "bits.choices = []: must be one width or more");
        let order = "must be widths in ascending order, none twice";
        check(Some(3.0), Some(&[4, 3]), &format!("bits.choices = [4, 3]: {order}"));
        check(Some(3.0), Some(&[3, 3]), &format!("bits.choices = [3, 3]: {order}"));
        check(None, Some(&[3, 4]), "bits.choices = [3, 4]: must be given with bits.average (--bits)");
        let text = "scheme = \"w3a16\"\nbits = { average = 3, choices = [1, 3] }";
        let message = RecipeFile::parse(text, Path::new("my.toml")).unwrap_err().to_string();
        assert!(message.contains("1 bits: codes have 2 to 8 bits"), "{message}");
        let text = "scheme = \"w3a16\"\nbits.choices = [2, 3]";
        assert!(RecipeFile::parse(text, Path::new("my.toml")).unwrap_err().to_string().contains("average"));
    }
}
