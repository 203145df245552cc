//! The tables of a recipe, such as `[learn]`. **A key is declared here, once:** its type and meaning, its option on the command line with
//! its help, which runs read it, and what is allowed. From that the macro makes the table, its patch in which every key may be absent, a
//! method of [`Overrides`] named like the option, and the entry among [`keys`].

use oq_quant_core::{Bits, Override, QuantSpec, RotateKind, SiteKind};
use serde::{Deserialize, Serialize};

use crate::choices::{Loss, Method, Preset, Rounding, Start};
use crate::error::RecipeError;
use crate::setting::{Setting, must, must_be_rate};

/// Everything that decides what calibration computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What is quantized, to how many bits, in which groups.
    pub scheme: QuantSpec,
    /// How codes are found.
    pub method: Method,
    /// The text that blocks are run on; `rtn` reads none of it, unless an average of bits is to be measured.
    pub calibration: Calibration,
    /// How clipping and rounding are learned; `rtn` and `smoothquant` read none of it.
    pub learn: Learn,
    /// `[let]`: the learnable equivalent transformation; `rtn` reads none of it.
    #[serde(rename = "let")]
    pub transform: Transform,
    /// What is learned after all blocks; only `omniquant` reads it.
    pub tune: Tune,
    /// Orthogonal matrices that are put into the model first.
    pub rotate: Rotate,
    /// An average of bits in place of the scheme's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<BitBudget>,
    /// Matrices outside the blocks that are quantized too.
    #[serde(default, skip_serializing_if = "Outer::is_none")]
    pub outer: Outer,
    /// Each `[[override]]`: linears that the scheme does not hold for; the last that covers a linear counts.
    #[serde(default, rename = "override", skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
}

/// What the command line sets; it has the last word. Keys are set by methods named like their options, such as
/// `Overrides::default().samples(64).epochs(5)`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// How codes are found.
    pub method: Option<Method>,
    /// The default one where there is none.
    pub preset: Option<Preset>,
    /// Asks for the equivalent transformation, or for none; sites overrule it.
    pub use_let: Option<bool>,
    /// `[calibration]`
    pub calibration: CalibrationPatch,
    /// `[learn]`
    pub learn: LearnPatch,
    /// `[let]`
    pub transform: TransformPatch,
    /// `[tune]`
    pub tune: TunePatch,
    /// `[rotate]`
    pub rotate: RotatePatch,
    /// `[bits]`
    pub bits: BitsPatch,
    /// `[outer]`
    pub outer: OuterPatch,
    /// Each `[[override]]`, after those of files.
    pub overrides: Vec<Override>,
}

/// A key of a recipe's tables, as the program needs it. All of them are [`keys`].
#[derive(Clone, Copy)]
pub struct Key {
    /// As a recipe file writes it, such as `learn.epochs`.
    pub path: &'static str,
    /// Its option on the command line, where it has one.
    pub option: Option<KeyOption>,
    pub(crate) set: fn(&mut Overrides, &str) -> Result<(), String>,
    pub(crate) is_asked_for: fn(&Overrides) -> bool,
    pub(crate) is_read: fn(&Recipe) -> bool,
    pub(crate) check: fn(&Recipe) -> Result<(), RecipeError>,
}

/// The option of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyOption {
    /// With underscores, such as `lwc_lr` for `--lwc-lr`.
    pub name: &'static str,
    /// What stands for its value in the help, such as `N`.
    pub value_name: &'static str,
    /// What the help says of it.
    pub help: &'static str,
    /// Whether its value is a list, with commas between the entries.
    pub is_list: bool,
}

impl Key {
    /// Sets the key from a word of the command line; the error says what is allowed.
    pub fn set(&self, overrides: &mut Overrides, text: &str) -> Result<(), String> {
        (self.set)(overrides, text)
    }
}

/// What is declared beside a key's name, type and documentation.
pub(crate) struct Declared<T> {
    pub(crate) value_name: &'static str,
    pub(crate) help: &'static str,
    /// Whether a run reads it.
    pub(crate) is_read: fn(&Recipe) -> bool,
    /// Whether a value asks for anything: an option that asks for nothing needs no warning where it is not read.
    pub(crate) asks: fn(&T) -> bool,
    /// What the value must be where it is not allowed.
    pub(crate) allows: fn(&T, &Recipe) -> Result<(), String>,
}

impl<T> Declared<T> {
    /// Every run reads it, and any value is allowed.
    pub(crate) const PLAIN: Self =
        Self { value_name: "", help: "", is_read: |_| true, asks: |_| true, allows: |_, _| Ok(()) };
}

/// Declares a table: `name` in files, the field of [`Overrides`] that has its patch, how a recipe is asked for it, and its keys. A key's
/// `as option` is its option with underscores; braces hold what differs from [`Declared::PLAIN`].
macro_rules! table {
    (
        $(#[$about:meta])*
        [$name:literal] pub struct $table:ident, $patch:ident: $field:ident, $recipe:ident => $get:expr;
        $($(#[$doc:meta])* pub $key:ident: $value:ty $(as $option:ident)? { $($declared:tt)* })+
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $table {
            $($(#[$doc])* pub $key: $value,)+
        }

        #[doc = concat!("[`", stringify!($table), "`], key by key.")]
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $patch {
            $($(#[$doc])* pub $key: Option<$value>,)+
        }

        impl $patch {
            /// Sets the keys that are there.
            pub(crate) fn apply_to(&self, table: &mut $table) {
                $(if let Some(value) = &self.$key {
                    table.$key.clone_from(value);
                })+
            }
        }

        impl Overrides {
            $($(
                #[doc = concat!("With `", $name, ".", stringify!($key), "`: see [`", stringify!($table), "`].")]
                #[must_use]
                pub fn $option(mut self, value: $value) -> Self {
                    self.$field.$key = Some(value);
                    self
                }
            )?)+
        }

        impl $table {
            const KEYS: &[Key] = &[$({
                #[allow(clippy::needless_update, reason = "some keys declare everything")]
                const DECLARED: Declared<$value> = Declared { $($declared)* ..Declared::PLAIN };
                const OPTION: &[&str] = &[$(stringify!($option))?];
                Key {
                    path: concat!($name, ".", stringify!($key)),
                    option: match OPTION {
                        [name] => Some(KeyOption {
                            name,
                            value_name: DECLARED.value_name,
                            help: DECLARED.help,
                            is_list: <$value as Setting>::IS_LIST,
                        }),
                        _ => None,
                    },
                    set: |overrides, text| {
                        overrides.$field.$key = Some(Setting::parse(text)?);
                        Ok(())
                    },
                    is_asked_for: |overrides| overrides.$field.$key.as_ref().is_some_and(DECLARED.asks),
                    is_read: DECLARED.is_read,
                    check: |$recipe| {
                        let table: Option<&$table> = $get;
                        let Some(value) = table.map(|table| &table.$key) else { return Ok(()) };
                        let allowed = value.fits().and_then(|()| (DECLARED.allows)(value, $recipe));
                        allowed.map_err(|allowed| RecipeError::Value {
                            key: concat!($name, ".", stringify!($key)),
                            value: value.show(),
                            allowed,
                        })
                    },
                }
            }),+];
        }
    };
}

/// All keys of all tables, in the order of a recipe file.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    let tables =
        [Calibration::KEYS, Learn::KEYS, Transform::KEYS, Tune::KEYS, Rotate::KEYS, BitBudget::KEYS, Outer::KEYS];
    tables.into_iter().flatten()
}

table! {
    /// The text that blocks are run on.
    ["calibration"] pub struct Calibration, CalibrationPatch: calibration, recipe => Some(&recipe.calibration);

    /// A dataset's name such as `wikitext2`, or a text file.
    pub data: String as calib {
        value_name: "DATA",
        help: "Calibration text: wikitext2, wikitext2:valid, or a file (text, .json, .jsonl, .json.gz, .parquet; - for stdin)",
        is_read: Recipe::reads_text,
        allows: |data, _| must(!data.trim().is_empty(), "a dataset such as wikitext2, or a text file"),
    }
    /// Segments, 1 or more.
    pub samples: usize as samples {
        value_name: "N",
        help: "Number of calibration segments",
        is_read: Recipe::reads_text,
        allows: |samples, _| must(*samples > 0, "1 or more"),
    }
    /// Tokens in a segment, 2 or more.
    pub seqlen: usize as seqlen {
        value_name: "N",
        help: "Tokens per calibration segment",
        is_read: Recipe::reads_text,
        allows: |seqlen, _| must(*seqlen > 1, "2 or more"),
    }
    /// Chooses the segments; at most 2^63 - 1, the largest integer of TOML.
    pub seed: u64 as seed {
        value_name: "N",
        help: "Seed for choosing segments, and for drawing tokens with --bits",
        is_read: Recipe::reads_text,
    }
    /// Segments in one optimizer step, 1 to `samples`.
    pub batch: usize as batch {
        value_name: "N",
        help: "Segments per optimizer step",
        is_read: |recipe| recipe.method.reads_text(),
        allows: |batch, recipe| {
            let samples = recipe.calibration.samples;
            must((1..=samples).contains(batch), format!("1 to calibration.samples, which is {samples}"))
        },
    }
    /// Steps that an epoch has at least: where segments are fewer, and a step reads one, more of them are drawn that are as much shorter,
    /// see [`Recipe::text`]. Runs recorded by versions without it have 0.
    #[serde(default)]
    pub steps: usize as steps {
        value_name: "N",
        help: "Steps of an epoch, at least: fewer segments are replaced by more and shorter ones, of 256 tokens or more, but not with a \
               --batch (0: never) [default: 64, with --preset best 256]",
        is_read: learns,
    }
}

table! {
    /// How clipping and rounding are learned.
    ["learn"] pub struct Learn, LearnPatch: learn, recipe => Some(&recipe.learn);

    /// Passes over the segments, for each block; 1 or more.
    pub epochs: usize as epochs {
        value_name: "N",
        help: "Passes over the calibration segments for each block",
        is_read: learns,
        allows: |epochs, _| must(*epochs > 0, "1 or more (to learn nothing, use method = \"rtn\")"),
    }
    /// AdamW's learning rate for the clipping strengths; positive.
    pub lwc_lr: f64 as lwc_lr {
        value_name: "X",
        help: "Learning rate of the clipping strengths",
        is_read: learns,
        allows: |rate, _| must_be_rate(*rate, "1e-2"),
    }
    /// Adds the error against the full-precision block on the quantized model's own input.
    pub aug_loss: bool as aug_loss {
        value_name: "BOOL",
        help: "Also learn from the full-precision block's output on the quantized model's inputs: true or false [default: where the \
               paper does; if weights alone are quantized, only with --preset paper]",
        is_read: learns,
    }
    /// What is minimized.
    pub loss: Loss as loss {
        value_name: "LOSS",
        help: "What is minimized: relative (each token's error relative to its size) or mse",
        is_read: learns,
    }
    /// Where clipping and rounding start.
    pub start: Start as start {
        value_name: "START",
        help: "Where learning starts: compensate (each weight's rounding error is compensated by the weights after it, as in GPTQ), \
               search (the clipping with the least error, given the linear's inputs) or whole (98 % of the range, as published)",
        is_read: learns,
    }
    /// How weights are rounded.
    pub rounding: Rounding as rounding {
        value_name: "HOW",
        help: "How weights are rounded: learned, or fixed (as --start leaves it)",
        is_read: learns,
    }
    /// Calibration tokens that an expert needs to be learned from them. Those that fewer reach start from the statistics of all tokens, and
    /// stay there. 0: every expert has its own tokens only.
    pub expert_tokens: usize as expert_tokens {
        value_name: "N",
        help: "Experts that fewer than N calibration tokens reach start from the statistics of all tokens, and stay there (0: none)",
        is_read: learns,
    }
}

table! {
    /// Where and how channels are rescaled (OmniQuant, section 3.3).
    ["let"] pub struct Transform, TransformPatch: transform, recipe => Some(&recipe.transform);

    /// Where; none means no transformation. No kind stands here twice.
    pub sites: Vec<SiteKind> as let_sites {
        value_name: "LIST",
        help: "Sites to transform: a list of norm, vo, qk, updown, such as norm,vo",
        is_read: |recipe| recipe.method.reads_text(),
        allows: |sites, recipe| {
            must(!sites.iter().enumerate().any(|(i, site)| sites[..i].contains(site)), "without repetition")?;
            let kinds = SiteKind::ALL.map(SiteKind::name).join(", ");
            let some = format!("one or more of {kinds} for smoothquant (to round only, use method = \"rtn\")");
            must(!sites.is_empty() || recipe.method != Method::Smoothquant, some)
        },
    }
    /// Also shifts channels, which takes linears with biases.
    pub shift: bool as let_shift {
        value_name: "BOOL",
        help: "Also shift channels, where linears have biases (OPT): true or false",
        is_read: transforms,
        asks: |shift| *shift,
    }
    /// AdamW's learning rate for scales and shifts; positive.
    pub lr: f64 as let_lr {
        value_name: "X",
        help: "Learning rate of the scales and shifts of channels",
        is_read: |recipe| transforms(recipe) && learns(recipe),
        allows: |rate, _| must_be_rate(*rate, "5e-3"),
    }
    /// Weight of activations against weights where scales start: `s = max|X|^alpha / max|W|^(1 - alpha)`; 0 to 1.
    pub alpha: f64 as let_alpha {
        value_name: "X",
        help: "How scales start, 0 to 1: 0 evens out the weights, 1 the activations",
        is_read: transforms,
        allows: |alpha, _| must((0.0..=1.0).contains(alpha), "0 to 1"),
    }
}

/// More passes of tuning than anybody makes: each has text of its own.
const MAX_TUNE_EPOCHS: usize = 1000;

table! {
    /// Tuning of all blocks together: their scales, norms and biases, down the divergence of the quantized model's predictions from those
    /// of the model in full precision (EfficientQAT, arXiv 2407.11062, section 3.3).
    ["tune"] pub struct Tune, TunePatch: tune, recipe => Some(&recipe.tune);

    /// Passes, each over as many segments as blocks learn from, of its own; 0 for none.
    pub epochs: usize as tune_epochs {
        value_name: "N",
        help: "After the blocks, epochs of tuning the scales, norms and biases of all blocks together, each over new segments \
               [default: 1 with --preset default or best, else 0]",
        is_read: learns,
        asks: |epochs| *epochs > 0,
        allows: |epochs, _| must(*epochs <= MAX_TUNE_EPOCHS, format!("{MAX_TUNE_EPOCHS} or less")),
    }
    /// AdamW's learning rate at first, which falls linearly to 0: of the logarithms of scales and norms, and of biases in units of
    /// their root mean square; positive.
    pub lr: f64 as tune_lr {
        value_name: "X",
        help: "Initial learning rate of that tuning [default: 5e-3]",
        is_read: |recipe| learns(recipe) && recipe.tune.epochs > 0,
        allows: |rate, _| must_be_rate(*rate, "5e-3"),
    }
    /// How far tuning pulls codes, in steps of the grid: what usual gradients, all in one direction, add up to while rates fall to 0. Codes
    /// move by one step where it is more than half of one. 0 for codes that stay.
    // Records of runs before there was this key are read too.
    #[serde(default)]
    pub codes: f64 as tune_codes {
        value_name: "X",
        help: "How far that tuning pulls codes, in steps of the grid; they move where it is half a step (0: they stay) [default: 2 \
               with --preset best at 2 to 4 bits, else 0]",
        is_read: |recipe| learns(recipe) && recipe.tune.epochs > 0,
        allows: |reach, _| must((0.0..=10.0).contains(reach), "0 to 10"),
    }
}

table! {
    /// Orthogonal matrices that are put into the model before anything else (QuaRot, arXiv 2404.00456).
    #[derive(Copy, Default, Eq)]
    ["rotate"] pub struct Rotate, RotatePatch: rotate, recipe => Some(&recipe.rotate);

    /// Where.
    pub kind: RotateKind as rotate {
        value_name: "KIND",
        help: "Rotate channels first, so that none is much larger than the others: none, merged (into the weights) or online (also \
               queries, keys and the input of the MLP's last linear, while the model runs) [default: online for LLaMA with activations of \
               4 bits or fewer, else none; none with --preset paper or if nothing is learned]",
    }
    /// Decides the matrices; at most 2^63 - 1.
    pub seed: u64 {}
}

/// Default widths. 7 bits cost nearly as much as 8.
const CHOICES: [u32; 6] = [2, 3, 4, 5, 6, 8];

table! {
    /// `[bits]`: each linear gets its own width, chosen by how much it costs the model's predictions. The scheme's bits are then ignored.
    ["bits"] pub struct BitBudget, BitsPatch: bits, recipe => recipe.bits.as_ref();

    /// Maximum bits per code, averaged over all quantized weights and without scales and zero points; such as 3.25.
    pub average: f64 as bits {
        value_name: "X",
        help: "Average bits per weight, such as 3.25, in place of the scheme's: each linear gets its own width, by how much the \
               predictions depend on it",
        allows: |average, recipe| {
            let choices = recipe.bits.as_ref().map_or(&[][..], |bits| &bits.choices);
            let (Some(least), Some(most)) = (choices.iter().min(), choices.iter().max()) else { return Ok(()) };
            let ends = f64::from(least.get())..=f64::from(most.get());
            must(ends.contains(average), format!("{least} to {most}, the ends of bits.choices"))
        },
    }
    /// Widths to choose from, the fewest bits first.
    pub choices: Vec<Bits> as bit_choices {
        value_name: "LIST",
        help: "Widths to choose from [default: 2,3,4,5,6,8]",
        allows: |choices, _| {
            must(!choices.is_empty(), "one width or more")?;
            must(choices.is_sorted_by(|a, b| a < b), "widths in ascending order, none twice")
        },
    }
}

table! {
    /// Matrices outside the blocks, rounded to nearest in the scheme's groups. Without a number of bits they stay in full precision.
    #[derive(Copy, Default, Eq)]
    ["outer"] pub struct Outer, OuterPatch: outer, recipe => Some(&recipe.outer);

    /// Bits of the output head, if it is not the embedding.
    pub head_bits: Option<Bits> as head_bits {
        value_name: "N",
        help: "Quantize the output head too, to N bits, rounded to nearest. A head that is the embedding takes --embed-bits",
    }
    /// Bits of the token embedding; and of the head, if that is the same table.
    pub embed_bits: Option<Bits> as embed_bits {
        value_name: "N",
        help: "Quantize the token embedding too, to N bits, rounded to nearest; with a tied head, one table for both",
    }
}

impl Outer {
    /// Whether nothing outside the blocks is quantized.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl BitBudget {
    /// An average, with the default widths.
    pub fn new(average: f64) -> Self {
        let choices = CHOICES.map(|bits| Bits::new(bits).expect("2 to 8")).to_vec();
        Self { average, choices }
    }
}

fn learns(recipe: &Recipe) -> bool {
    recipe.method.learns()
}

fn transforms(recipe: &Recipe) -> bool {
    recipe.method.reads_text() && !recipe.transform.sites.is_empty()
}

#[cfg(test)]
mod tests;
