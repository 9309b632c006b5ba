//! Properties of every configuration, however broken, checked with the seeds and by
//! `cargo xtask fuzz`.
//!
//! Unlike in other crates, this module is always compiled, because the tests of both daemons use it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::LazyLock;

use url::Url;

use crate::cli::{layers, settings_text};
use crate::settings::{Errors, Reader, Shown};

/// Secret keys. `config/default.toml` does not contain them.
const SECRETS: [&str; 4] = ["postgres.url", "postgres.listen_url", "rabbitmq.url", "mysql.url"];
/// A shorter text may also have another meaning in the input.
const SECRET_MIN: usize = 6;

/// Reads the configuration of a daemon whose environment variables start with `prefix`.
///
/// The input consists of lines `VARIABLE=value`, an empty line and a TOML file. The properties: the
/// output depends on no secret; it can be read again with the same result; every error names a key, a
/// variable or a line.
///
/// # Panics
///
/// When a property does not hold.
pub fn settings(
    input: &[u8],
    prefix: &'static str,
    read: impl Fn(Reader) -> Result<Vec<Shown>, Errors>,
) {
    let Ok(text) = str::from_utf8(input) else { return };
    // The file of a secret is read to its end, and some devices are endless.
    if text.contains("/dev") {
        return;
    }
    let (variables, toml) = text.split_once("\n\n").unwrap_or((text, ""));
    let environment: BTreeMap<String, String> = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let result = load(toml, prefix, environment.clone(), &read);
    let output = text_of(&result);
    let unique = |secret: &String| text.matches(&**secret).count() == 1;
    // An escape in the TOML may hide another occurrence of the secret.
    for secret in
        secrets(toml, &environment).filter(|secret| unique(secret) && !text.contains('\\'))
    {
        let hide = |text: &str| text.replace(&secret, &"x".repeat(secret.len()));
        let hidden = environment.iter().map(|(name, value)| (name.clone(), hide(value))).collect();
        assert_eq!(
            text_of(&load(&hide(toml), prefix, hidden, &read)),
            output,
            "{secret} changes the output"
        );
    }
    match result {
        Ok(shown) => {
            let again = load(&settings_text(&shown), prefix, BTreeMap::new(), &read);
            let values = |shown: &[Shown]| -> Vec<_> {
                shown.iter().map(|shown| (shown.key, shown.value.clone())).collect()
            };
            let again = again.unwrap_or_else(|errors| panic!("{errors}:\n{output}"));
            assert_eq!(values(&again), values(&shown));
        }
        Err(errors) => assert_names_keys(&errors, &environment),
    }
}

fn load(
    toml: &str,
    prefix: &'static str,
    environment: BTreeMap<String, String>,
    read: impl Fn(Reader) -> Result<Vec<Shown>, Errors>,
) -> Result<Vec<Shown>, Errors> {
    let file = file();
    std::fs::write(&file, toml).expect("the temporary folder takes files");
    let result = layers(Some(&file), prefix, environment).load().and_then(read);
    std::fs::remove_file(&file).expect("the temporary folder takes files");
    result
}

/// The output that an operator sees.
fn text_of(result: &Result<Vec<Shown>, Errors>) -> String {
    match result {
        Ok(shown) => settings_text(shown),
        Err(errors) => errors.to_string(),
    }
}

/// A temporary file of this thread.
fn file() -> PathBuf {
    let thread = std::thread::current().id();
    std::env::temp_dir().join(format!("settings-{}-{thread:?}.toml", std::process::id()))
}

/// Checks that every error names the key, the variable or the line of the file.
fn assert_names_keys(Errors(errors): &Errors, environment: &BTreeMap<String, String>) {
    static KEYS: LazyLock<BTreeSet<String>> = LazyLock::new(known_keys);
    assert!(!errors.is_empty());
    let line = format!("{}, line ", file().display());
    for error in errors {
        let named = KEYS.iter().any(|key| error.contains(key))
            || environment.keys().any(|name| error.contains(name.as_str()))
            || error.starts_with("unknown key ")
            || error.starts_with(&line);
        assert!(named, "{error}");
    }
}

fn known_keys() -> BTreeSet<String> {
    let shown = |(section, table): (String, toml::Value)| {
        let names = table.as_table().map(|table| table.keys().cloned().collect::<Vec<_>>());
        names.unwrap_or_default().into_iter().map(move |name| format!("{section}.{name}"))
    };
    let defaults: toml::Table =
        include_str!("../../../config/default.toml").parse().expect("the defaults are TOML");
    defaults.into_iter().flat_map(shown).chain(SECRETS.map(str::to_owned)).collect()
}

/// The passwords of all URLs. A text in the place of a URL that is not one counts as secret itself.
fn secrets(toml: &str, environment: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    let table: toml::Table = toml.parse().unwrap_or_default();
    let in_file = SECRETS.into_iter().filter_map(move |key| {
        let (section, name) = key.split_once('.')?;
        Some(table.get(section)?.get(name)?.as_str()?.to_owned())
    });
    let variables = environment.iter().filter(|(name, _)| name.ends_with("_URL"));
    let urls = in_file.chain(variables.map(|(_, value)| value.clone())).collect::<Vec<_>>();
    let secret = |url: String| match Url::parse(&url) {
        Ok(url) if url.has_authority() => url.password().map(str::to_owned),
        _ => Some(url),
    };
    urls.into_iter().filter_map(secret).filter(|secret| secret.len() >= SECRET_MIN)
}
