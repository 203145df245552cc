//! The table of bits.

use std::path::Path;

use super::*;
use crate::{RecipeError, RecipeFile};

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
    assert_eq!(budget("", &none().bits(3.25)), usual);
    let typed = none().bits(2.5).bit_choices(bits(&[2, 4]));
    let expected = Some(BitBudget { average: 2.5, choices: bits(&[2, 4]) });
    assert_eq!(budget("bits = { average = 4, choices = [4, 7] }", &typed), expected);
    let typed = none().bits(5.0);
    let expected = Some(BitBudget { average: 5.0, choices: bits(&[4, 7]) });
    assert_eq!(budget("bits = { average = 4, choices = [4, 7] }", &typed), expected);
}

#[test]
fn sensitivity_is_measured_on_text() {
    let rtn = Overrides::default().method(Method::Rtn);
    assert!(!resolve("", &rtn).unwrap().reads_text());
    assert!(resolve("bits.average = 3", &rtn).unwrap().reads_text());
    assert!(resolve("", &Overrides::default()).unwrap().reads_text());
}

#[test]
fn bad_budgets() {
    #[track_caller]
    fn check(average: Option<f64>, choices: Option<&[u32]>, expected: &str) {
        let patch = BitsPatch { average, choices: choices.map(bits) };
        let overrides = Overrides { bits: patch, ..Overrides::default() };
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

#[test]
fn each_option_sets_its_key() {
    let mut paths: Vec<&str> = keys().map(|key| key.path).collect();
    let mut options: Vec<&str> = keys().filter_map(|key| key.option).map(|option| option.name).collect();
    let n = (paths.len(), options.len());
    paths.sort_unstable();
    paths.dedup();
    options.sort_unstable();
    options.dedup();
    assert_eq!((paths.len(), options.len()), n, "no key and no option is there twice");

    let typed = |path: &str, text: &str| {
        let mut overrides = Overrides::default();
        keys().find(|key| key.path == path).expect("a key").set(&mut overrides, text).map(|()| overrides)
    };
    assert_eq!(typed("learn.epochs", "7").unwrap(), Overrides::default().epochs(7));
    assert_eq!(typed("let.shift", "true").unwrap(), Overrides::default().let_shift(true));
    assert_eq!(typed("bits.choices", "2,4").unwrap(), Overrides::default().bit_choices(bits(&[2, 4])));
    assert_eq!(typed("learn.epochs", "-1").unwrap_err(), "must be a whole number, 0 or more");
    assert_eq!(typed("tune.lr", "fast").unwrap_err(), "must be a number");
    assert_eq!(typed("learn.start", "half").unwrap_err(), "must be one of whole, search, compensate");
}
