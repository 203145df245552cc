//! Resolves MODEL of the command line to a directory.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use oq_data::{DataError, Hub, HubEvent};
use oq_formats::gguf::convert_to_hf;
use oq_formats::{quantization_of, read_config};
use oq_models::ModelError;
use oq_recipe::{ModelEntry, Recipe, RecipeFile, Source, find};
use serde_json::Value;

use crate::args::{ModelArgs, RecipeArgs};
use crate::exit::CliError;
use crate::output::Output;

/// The repository that this binary was built in. Paths in configs/ are relative to it, unless they exist below the working directory.
const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// A model as given on the command line.
pub struct Named {
    /// The name without its revision.
    pub name: String,
    /// Its entry in configs/, if it has one.
    pub entry: Option<&'static ModelEntry>,
    /// The requested revision.
    revision: Option<String>,
}

impl Named {
    /// Looks up MODEL. A directory takes precedence over a name in configs/. What follows an @ is a revision, unless the whole name
    /// exists as a path.
    pub fn new(model: &ModelArgs) -> Result<Self, CliError> {
        let (name, behind) = match model.name.rsplit_once('@') {
            Some((name, revision)) if !Path::new(&model.name).exists() => (name, Some(revision.to_owned())),
            _ => (&*model.name, None),
        };
        let revision = match (behind, &model.revision) {
            (Some(behind), Some(option)) if behind != *option => {
                let message = format!("{}: two revisions, {behind} and --revision {option}: give one", model.name);
                return Err(CliError::Usage(message));
            }
            (behind, option) => behind.or_else(|| option.clone()),
        };
        let entry = if Path::new(name).is_dir() { None } else { find(name) };
        Ok(Self { name: name.to_owned(), entry, revision })
    }

    /// A short name for output directories.
    pub fn stem(&self) -> String {
        let path = Path::new(&self.name);
        let last = path.file_name().or(path.parent().and_then(Path::file_name));
        let stem = last.map_or_else(|| "model".to_owned(), |last| last.to_string_lossy().into_owned());
        match &self.revision {
            Some(revision) => format!("{stem}-{}", revision.replace('/', "-")),
            None => stem,
        }
    }

    /// The recipe for this model. A model that is not in configs/ belongs to the family that its `config.json` names, or to LLaMA's
    /// while that is unknown.
    pub fn recipe(&self, args: &RecipeArgs, config: Option<&Value>) -> Result<Recipe> {
        let file = args.recipe.as_deref().map(RecipeFile::read).transpose()?;
        let scheme = args.scheme.or(file.as_ref().and_then(|file| file.scheme)).ok_or_else(|| no_scheme(args))?;
        let unnamed = config.map(|config| ModelEntry::of_directory(Path::new(&self.name), config));
        let entry = self.entry.or(unnamed.as_ref());
        Ok(Recipe::resolve(scheme, entry, file.as_ref(), &args.overrides())?)
    }

    /// The model's `config.json`, to plan before weights are downloaded: from configs/, or else the file itself, without the weights.
    pub fn config(&self, out: &Output) -> Result<Value> {
        let known = self.entry.filter(|entry| !matches!(entry.source, Source::Path { .. }));
        let config = match known {
            Some(entry) => entry.config.clone(),
            None => match self.place()? {
                Place::Hub { repo, revision } => {
                    let file = self.fetching(out, |hub, on| hub.fetch_config(repo, revision, on))?;
                    read_config(file.parent().expect("a file lies in a folder"))?
                }
                _ => read_config(&self.directory(out)?)?,
            },
        };
        if let Some(quantization) = quantization_of(&config)? {
            return Err(ModelError::AlreadyQuantized {
                dir: self.name.clone().into(),
                quantization: Box::new(quantization),
            }
            .into());
        }
        Ok(config)
    }

    /// Whether the model has to be looked up on the hub.
    pub fn is_on_hub(&self) -> Result<bool> {
        Ok(matches!(self.place()?, Place::Hub { .. }))
    }

    /// The model's directory, after downloading or converting it if needed.
    pub fn directory(&self, out: &Output) -> Result<PathBuf> {
        match self.place()? {
            Place::Directory(path) => Ok(path),
            Place::Wheel { entry, bytes } => from_wheel(entry, bytes, out),
            Place::Hub { repo, revision } => self.fetching(out, |hub, on| hub.fetch_model(repo, revision, on)),
        }
    }

    /// Runs `fetch` to download from the hub, with progress.
    fn fetching(
        &self,
        out: &Output,
        fetch: impl FnOnce(&Hub, &mut dyn FnMut(HubEvent<'_>)) -> Result<PathBuf, DataError>,
    ) -> Result<PathBuf> {
        let hub = Hub::from_env();
        let bar = out.bar("fetching");
        let mut on = |event: HubEvent<'_>| match event {
            HubEvent::Started { file, total, .. } => {
                bar.message(file.to_owned());
                bar.line(|| format!("fetching {file}"));
                bar.set(0, total as usize);
            }
            HubEvent::Progress { done, total, .. } => bar.set(done as usize, total as usize),
            HubEvent::Waiting { file } => bar.message(format!("waiting for another program to fetch {file}")),
            _ => {}
        };
        fetch(&hub, &mut on).with_context(|| match self.entry {
            Some(_) => format!("{}: cannot be downloaded from the hub", self.name),
            None => format!("{}: no such folder, and it cannot be downloaded from the hub", self.name),
        })
    }

    fn place(&self) -> Result<Place<'_>> {
        let place = self.find_place()?;
        match (&place, &self.revision) {
            (Place::Directory(_) | Place::Wheel { .. }, Some(revision)) => {
                let message = format!("{}: not a model on the hub, so it has no revision {revision}", self.name);
                Err(CliError::Usage(message).into())
            }
            _ => Ok(place),
        }
    }

    fn find_place(&self) -> Result<Place<'_>> {
        let path = Path::new(&self.name);
        if path.is_dir() {
            return Ok(Place::Directory(path.to_owned()));
        }
        let asked = self.revision.as_deref();
        match self.entry.map(|entry| (entry, &entry.source)) {
            Some((_, Source::Path { path })) => match in_repository(path) {
                Some(dir) => Ok(Place::Directory(dir)),
                None => {
                    let message = format!(
                        "{}: comes with the source code ({path}), which is not here: give a model's directory",
                        self.name
                    );
                    Err(CliError::Missing(message).into())
                }
            },
            Some((entry, Source::Wheel { bytes, .. })) => Ok(Place::Wheel { entry, bytes: *bytes }),
            Some((_, Source::Hub { repo, revision })) => {
                Ok(Place::Hub { repo, revision: asked.or(revision.as_deref()) })
            }
            None if path.exists() => Err(CliError::Usage(not_a_folder(path)).into()),
            None if Hub::is_repo_id(&self.name) && self.name.contains('/') && !path.starts_with(".") => {
                Ok(Place::Hub { repo: &self.name, revision: asked })
            }
            None if self.name.contains('/') && !self.name.contains("://") => {
                let message = format!(
                    "{}: no such folder (a model is a folder, a hub id, owner/name, or a name in configs/)",
                    self.name
                );
                Err(CliError::Missing(message).into())
            }
            None => {
                let known = oq_recipe::names().collect::<Vec<_>>().join(", ");
                let what = "neither a directory, a hub id (owner/name) nor a name in configs/";
                Err(CliError::Missing(format!("{}: {what}; the names are {known}", self.name)).into())
            }
        }
    }
}

/// The error if neither the command line nor the recipe file has a scheme.
fn no_scheme(args: &RecipeArgs) -> CliError {
    CliError::Usage(match &args.recipe {
        None => "--scheme is missing".to_owned(),
        Some(file) => {
            let file = file.display();
            format!(
                "{file}: missing key `scheme`: give --scheme, or add it to the file, such as scheme = \"w4a16g128\""
            )
        }
    })
}

/// The error for a file given as a model: what it is, and what to give instead.
fn not_a_folder(path: &Path) -> String {
    let name = path.display();
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        return format!(
            "{name}: a file, not a model directory: convert this GGUF file with `omniquant convert {name} --out DIR`, and give DIR"
        );
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    format!("{name}: a file, not a model directory: give {}", folder.display())
}

/// A path in configs/: below the working directory if it exists there, else in the repository, if that is on this machine.
fn in_repository(path: &str) -> Option<PathBuf> {
    [PathBuf::from(path), Path::new(REPOSITORY).join(path)].into_iter().find(|path| path.exists())
}

/// A data argument as [`oq_data::load_text`] takes it. In configs/ it may name a file of the repository.
pub fn data_path(data: &str) -> String {
    let ours = Path::new(REPOSITORY).join(data);
    if !Path::new(data).exists() && ours.is_file() { ours.to_string_lossy().into_owned() } else { data.to_owned() }
}

/// The place of a model.
enum Place<'a> {
    Directory(PathBuf),
    Wheel { entry: &'a ModelEntry, bytes: u64 },
    Hub { repo: &'a str, revision: Option<&'a str> },
}

/// A GGUF model from Python wheels. `cargo xtask fetch` downloads it into the cache; here it is converted, once.
fn from_wheel(entry: &ModelEntry, bytes: u64, out: &Output) -> Result<PathBuf> {
    let name = &entry.name;
    let gguf = entry.wheel_file(&cache_dir()?).context("a wheel's file has a name")?;
    if gguf.metadata().map_or(0, |about| about.len()) != bytes {
        let message = format!("{name}: {} is not there: run `cargo xtask fetch {name}`", gguf.display());
        return Err(CliError::Missing(message).into());
    }
    let dir = gguf.with_file_name("hf");
    // config.json is written last, so the conversion is complete if it exists.
    if !dir.join("config.json").is_file() {
        let bar = out.bar("converting");
        bar.line(|| format!("{name}: converting {}", gguf.display()));
        convert_to_hf(&gguf, &dir, &mut |progress| bar.set(progress.done, progress.total))?;
    }
    Ok(dir)
}

/// The per-user cache directory.
pub fn cache_dir() -> Result<PathBuf, CliError> {
    oq_recipe::cache_dir(|name| std::env::var_os(name)).map_err(|mend| CliError::Missing(mend.to_owned()))
}

/// Refuses an output directory that has files in it.
pub fn refuse_used(dir: &Path) -> Result<(), CliError> {
    let refused = |why: String| Err(CliError::Usage(format!("--out {}: {why}", dir.display())));
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => refused("the directory is not empty: empty it, or choose another".to_owned()),
        Ok(false) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => refused(error.to_string()),
    }
}
