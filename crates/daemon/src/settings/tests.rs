use std::io::Write;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::*;

const DEFAULTS: &str = r#"
[relay]
workers = 2
pace = "5ms"
names = ["a", "b"]
[other]
anything = 1
"#;

struct Settings {
    workers: u16,
    pace: Duration,
    names: Vec<String>,
    url: String,
}

fn read(
    file: Option<&str>,
    environment: &[(&str, &str)],
) -> Result<(Settings, Vec<Shown>), Errors> {
    let mut path = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    path.write_all(file.unwrap_or_default().as_bytes()).unwrap();
    let mut reader = Layers {
        defaults: DEFAULTS,
        file: file.map(|_| path.path()),
        aliases: &[("AMQP_URL", "rabbitmq.url")],
        prefix: "OUTBOX_RELAY",
        environment: environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    }
    .load()?;
    reader.ignore_section("other");
    reader.secret_url("mysql.url", &MYSQL, false);
    let url = reader.secret_url("rabbitmq.url", &RABBITMQ, true);
    let settings = Settings {
        workers: reader.integer("relay.workers", 1..=64),
        pace: reader.duration("relay.pace", Duration::from_millis(1)..=Duration::from_secs(1)),
        names: reader.list("relay.names"),
        url: url.expose_secret().to_owned(),
    };
    let pair = ["relay.workers", "relay.pace"];
    reader.require(&pair, settings.workers < 10, "relay.workers is too many for relay.pace");
    Ok((settings, reader.finish()?))
}

const URL: (&str, &str) = ("AMQP_URL", "amqp://app:secret@localhost:5672/%2f?password=x");

#[test]
fn a_later_layer_wins() {
    let (settings, _) = read(None, &[URL]).unwrap();
    assert_eq!((settings.workers, settings.pace), (2, Duration::from_millis(5)));
    assert_eq!(settings.names, ["a", "b"]);
    let file = "[relay]\nworkers = 3\npace = \"7ms\"\n";
    let (settings, _) = read(Some(file), &[URL]).unwrap();
    assert_eq!((settings.workers, settings.pace), (3, Duration::from_millis(7)));
    let environment = [
        URL,
        ("OUTBOX_RELAY__RELAY__WORKERS", "4"),
        ("OUTBOX_RELAY__RELAY__NAMES", "c, d"),
        ("OUTBOX_RELAY__RABBITMQ__URL", "amqp://other"),
    ];
    let (settings, _) = read(Some(file), &environment).unwrap();
    assert_eq!((settings.workers, settings.pace), (4, Duration::from_millis(7)));
    assert_eq!(settings.names, ["c", "d"]);
    assert_eq!(settings.url, "amqp://other");
}

#[test]
fn all_errors_are_reported_at_once() {
    let environment = [
        ("OUTBOX_RELAY__RELAY__WORKERS", "no"),
        ("OUTBOX_RELAY__RELAY__PACE", "5"),
        ("OUTBOX_RELAY__RELAY__WORKRES", "4"),
    ];
    let errors = read(Some("[relya]\nx = 1\n"), &environment).err().unwrap();
    let errors = errors.to_string();
    assert!(errors.starts_with("5 errors in the configuration:\n  - "), "{errors}");
    for expected in [
        "rabbitmq.url is missing: set OUTBOX_RELAY__RABBITMQ__URL, or rabbitmq.url in a file",
        "relay.workers is not an integer from 1 to 64 \
         (environment variable OUTBOX_RELAY__RELAY__WORKERS)",
        "relay.pace is not a duration such as 250ms or 10s, from 1ms to 1s \
         (environment variable OUTBOX_RELAY__RELAY__PACE)",
        "unknown key relay.workres (environment variable OUTBOX_RELAY__RELAY__WORKRES)",
        "unknown key relya.x (",
    ] {
        assert!(errors.contains(expected), "{errors}\nshould contain\n{expected}");
    }
}

#[test]
fn a_pair_is_checked_only_when_both_are_valid() {
    let many = ("OUTBOX_RELAY__RELAY__WORKERS", "10");
    let errors = read(None, &[URL, many]).err().unwrap().to_string();
    assert!(errors.contains("too many for relay.pace"), "{errors}");
    let errors = read(None, &[URL, many, ("OUTBOX_RELAY__RELAY__PACE", "x")]).err().unwrap();
    assert_eq!(errors.0.len(), 1, "{errors}");
}

#[test]
fn a_number_is_not_converted() {
    for wrong in ["0", "65", "7.9", "yes", "", "1e1", "-1"] {
        assert!(read(None, &[URL, ("OUTBOX_RELAY__RELAY__WORKERS", wrong)]).is_err(), "{wrong}");
    }
}

#[test]
fn a_url_with_several_hosts_is_shown_without_its_password() {
    let url = "amqp://app:secret@one:1,two/%2f?password=x";
    let (settings, shown) = read(None, &[("AMQP_URL", url)]).unwrap();
    assert_eq!(settings.url, url);
    let shown = shown.iter().find(|shown| shown.key == "rabbitmq.url").unwrap();
    assert_eq!(shown.value, "\"amqp://app:***@one:1,two/%2f?***\"");
}

#[test]
fn a_url_of_another_server_is_refused_without_its_password() {
    let errors = read(None, &[("AMQP_URL", "mysql://app:secret@localhost/app")]).err().unwrap();
    let expected =
        "rabbitmq.url does not begin with amqp:// or amqps:// (environment variable AMQP_URL)";
    assert_eq!(errors.0, [expected]);
}

#[test]
fn a_list_has_no_lists() {
    let errors = read(Some("[relay]\nnames = [[\"a\"]]\n"), &[URL]).err().unwrap().to_string();
    assert!(errors.contains("relay.names is not a list"), "{errors}");
}

#[test]
fn a_secret_is_not_shown() {
    let (_, shown) = read(None, &[URL]).unwrap();
    let url = shown.iter().find(|shown| shown.key == "rabbitmq.url").unwrap();
    assert_eq!(url.value, "\"amqp://app:***@localhost:5672/%2f?***\"");
    assert_eq!(url.origin, "environment variable AMQP_URL");
}

#[test]
fn a_secret_may_come_from_a_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"amqp://app:secret@localhost\n").unwrap();
    let path = file.path().to_str().unwrap();
    let variable = ("OUTBOX_RELAY__RABBITMQ__URL_FILE", path);
    assert_eq!(read(None, &[variable]).unwrap().0.url, "amqp://app:secret@localhost");
    let both = read(None, &[variable, URL]).err().unwrap().to_string();
    assert!(both.contains("rabbitmq.url and rabbitmq.url_file are both set"), "{both}");
    let missing = [("OUTBOX_RELAY__RABBITMQ__URL_FILE", "/does/not/exist")];
    let missing = read(None, &missing).err().unwrap().to_string();
    assert!(missing.contains("/does/not/exist cannot be read"), "{missing}");
}

/// A path in a name, or a section in the place of a value, is an unknown key and changes no other key.
#[test]
fn a_name_is_not_a_path() {
    for (file, unknown) in [
        ("\"relay.workers\" = 3", "unknown key \"relay.workers\""),
        ("[relay]\n\"names[9]\" = \"c\"", "unknown key relay.names[9]"),
        ("relay = 1", "unknown key relay ("),
        ("[relay.workers]\nx = 1", "unknown key relay.workers.x"),
    ] {
        let errors = read(Some(file), &[URL]).err().unwrap();
        assert_eq!(errors.0.len(), 1, "{errors}");
        assert!(errors.0[0].starts_with(unknown), "{errors}");
    }
    let section = ("OUTBOX_RELAY__RELAY", "2");
    let errors = read(None, &[URL, section]).err().unwrap();
    assert_eq!(errors.0, ["unknown key relay (environment variable OUTBOX_RELAY__RELAY)"]);
}

#[test]
fn a_value_of_another_type_is_not_converted() {
    for (value, expected) in
        [("2.0", "an integer"), ("1979-05-27", "an integer"), ("true", "an integer")]
    {
        let errors = read(Some(&format!("[relay]\nworkers = {value}\n")), &[URL]).err().unwrap();
        assert!(errors.0[0].starts_with(&format!("relay.workers is not {expected}")), "{errors}");
    }
}
