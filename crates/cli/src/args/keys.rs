//! The options that are keys of a recipe. The recipe's tables declare them together with the keys; none is named here.

use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use oq_recipe::{Key, Overrides, keys};

/// The values given for these options.
#[derive(Clone, Debug, Default)]
pub struct KeyArgs {
    /// As settings of a recipe.
    pub overrides: Overrides,
    /// As they were given: option and value.
    pub words: Vec<(String, String)>,
}

impl Args for KeyArgs {
    fn augment_args(command: Command) -> Command {
        command.args(keys().filter_map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for KeyArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        for key in keys() {
            let Some(words) = key.option.and_then(|option| matches.get_many::<String>(option.name)) else { continue };
            // A list may be split over several options.
            let text = words.map(String::as_str).collect::<Vec<_>>().join(",");
            let refused = |allowed| Error::raw(ErrorKind::ValueValidation, format!("{}: {allowed}\n", key.path));
            key.set(&mut self.overrides, &text).map_err(refused)?;
            self.words.extend(key.option.map(|option| (flag(option.name), text)));
        }
        Ok(())
    }
}

/// The option of a key.
fn arg(key: &'static Key) -> Option<Arg> {
    let option = key.option?;
    let parser =
        ValueParser::from(move |text: &str| key.set(&mut Overrides::default(), text).map(|()| text.to_owned()));
    let action = if option.is_list { ArgAction::Append } else { ArgAction::Set };
    let arg = Arg::new(option.name).long(option.name.replace('_', "-")).value_name(option.value_name).help(option.help);
    Some(arg.action(action).value_parser(parser))
}

/// An option as it is typed.
fn flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}
