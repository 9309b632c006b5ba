//! A folder with real servers in it, unpacked from Debian's packages.
//!
//! Nothing is installed: the packages are only unpacked, no script of theirs runs, and the system's
//! own libraries are left alone. Programs of the tree see it as their file system (bubblewrap); where
//! that is forbidden, as in many containers, they are pointed at its loader and libraries (patchelf).

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{getgid, getuid};

use crate::workspace::succeed;

/// MySQL is in no other suite.
const SUITE: &str = "sid";
const PACKAGES: &str = "base-files,dash,bash,coreutils,sed,grep,mawk,hostname,libc-bin,procps,\
                        postgresql-18,postgresql-client-18,pgbouncer,mysql-server-core,\
                        mysql-client-core,rabbitmq-server,libeatmydata1";
const TOOLS: [(&str, &str); 3] =
    [("mmdebstrap", "mmdebstrap"), ("bwrap", "bubblewrap"), ("patchelf", "patchelf")];

/// The unpacked tree.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    root: PathBuf,
    boxed: bool,
}

impl Tree {
    /// Unpacks the servers into a folder, unless they are there.
    pub(super) fn at(folder: &Path) -> Result<Self> {
        let root = folder.join("tree");
        // Another version of this program may have unpacked others.
        let packages = root.join("packages");
        if fs::read_to_string(&packages).ok().as_deref() != Some(PACKAGES) {
            require_tools()?;
            unpack(&root, &folder.join("unpack.log"))?;
            fs::write(packages, PACKAGES)?;
        }
        let boxed = !patched(&root).exists() && can_box();
        let tree = Self { root, boxed };
        if !boxed && !patched(&tree.root).exists() {
            tree.patch()?;
        }
        Ok(tree)
    }

    /// Where programs find a file of the tree.
    pub(super) fn path(&self, inside: &str) -> PathBuf {
        if self.boxed { Path::new("/").join(inside) } else { self.root.join(inside) }
    }

    /// The files in a folder of the tree.
    pub(super) fn list(&self, inside: &str) -> Result<Vec<String>> {
        let entries = fs::read_dir(self.root.join(inside))?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// A program of the tree, as an ordinary user, who may write to `data` alone.
    pub(super) fn command(
        &self,
        data: &Path,
        variables: &[(&str, String)],
        program: impl AsRef<OsStr>,
    ) -> Result<Command> {
        let mut bin = ["usr/lib/postgresql/18/bin", "usr/lib/rabbitmq/bin", "usr/lib/erlang/bin"]
            .map(|folder| self.path(folder).display().to_string())
            .to_vec();
        let mut command = if self.boxed {
            bin.extend(["/usr/sbin".to_owned(), "/usr/bin".to_owned()]);
            self.boxed(data)?
        } else {
            bin.push(self.root.join("usr/mysqlbin").display().to_string());
            bin.extend(["/usr/bin".to_owned(), "/bin".to_owned()]);
            unboxed(data)?
        };
        command
            .arg("/usr/bin/env")
            .arg("-i")
            .arg(format!("PATH={}", bin.join(":")))
            .arg(format!("HOME={}", data.display()))
            .args(["LANG=C.UTF-8", "TZ=UTC"])
            .args(variables.iter().map(|(name, value)| format!("{name}={value}")))
            .arg(program)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// What mysqld must be told when it does not live at the root.
    pub(super) fn mysqld_options(&self) -> Vec<String> {
        if self.boxed {
            return Vec::new();
        }
        let root = self.root.display();
        vec![
            format!("--basedir={root}/usr"),
            format!("--lc-messages-dir={root}/usr/share/mysql"),
            format!("--character-sets-dir={root}/usr/share/mysql/charsets"),
            format!("--plugin-dir={root}/usr/lib/mysql/plugin"),
        ]
    }

    /// Root is another user inside, because PostgreSQL refuses to run as root.
    fn boxed(&self, data: &Path) -> Result<Command> {
        let (uid, gid) = match getuid().as_raw() {
            0 => (1000, 1000),
            uid => (uid, getgid().as_raw()),
        };
        let (passwd, group) = (data.join("passwd"), data.join("group"));
        fs::write(&passwd, format!("dev:x:{uid}:{gid}:dev:{}:/bin/sh\n", data.display()))?;
        fs::write(&group, format!("dev:x:{gid}:\n"))?;
        let mut command = Command::new("bwrap");
        command
            .args(["--unshare-user", "--uid", &uid.to_string(), "--gid", &gid.to_string()])
            .args(["--unshare-ipc", "--new-session"]);
        for (from, to) in [(self.root.join("usr"), "/usr"), (self.root.join("etc"), "/etc")] {
            command.arg("--ro-bind").arg(from).arg(to);
        }
        for (target, link) in [
            ("usr/bin", "/bin"),
            ("usr/sbin", "/sbin"),
            ("usr/lib", "/lib"),
            ("usr/lib64", "/lib64"),
        ] {
            command.args(["--symlink", target, link]);
        }
        command
            .args(["--dev", "/dev", "--proc", "/proc", "--dir", "/tmp", "--dir", "/run"])
            .args(["--dir", "/var", "--bind"])
            .args([data, data])
            .arg("--ro-bind")
            .args([passwd.as_os_str(), OsStr::new("/etc/passwd")])
            .arg("--ro-bind")
            .args([group.as_os_str(), OsStr::new("/etc/group")])
            .args(["--ro-bind", "/etc/hosts", "/etc/hosts"])
            .args(["--ro-bind", "/etc/resolv.conf", "/etc/resolv.conf"])
            .arg("--chdir")
            .arg(data);
        Ok(command)
    }

    /// Points the programs of the tree at its own loader, libraries and folders.
    fn patch(&self) -> Result<()> {
        let root = self.root.display().to_string();
        let script = format!(
            r#"set -eu
            for f in "{root}"/usr/sbin/mysqld "{root}"/usr/sbin/pgbouncer "{root}"/usr/bin/mysql* \
                     "{root}"/usr/lib/postgresql/18/bin/* \
                     $(find "{root}/usr/lib/erlang" -type f -perm /111); do
                [ -L "$f" ] && continue
                patchelf --print-interpreter "$f" >/dev/null 2>&1 || continue
                patchelf --set-interpreter "{root}/usr/lib64/ld-linux-x86-64.so.2" \
                         --force-rpath --set-rpath "{root}/usr/lib/x86_64-linux-gnu" "$f"
            done
            sed -i "s#/usr/lib/erlang#{root}/usr/lib/erlang#g" \
                "{root}"/usr/lib/erlang/bin/erl "{root}"/usr/lib/erlang/bin/start \
                "{root}"/usr/lib/erlang/erts-*/bin/erl "{root}"/usr/lib/erlang/erts-*/bin/start
            mkdir -p "{root}/usr/mysqlbin"
            ln -sf "{root}"/usr/bin/mysql* "{root}/usr/sbin/mysqld" "{root}/usr/sbin/pgbouncer" \
                "{root}/usr/mysqlbin/""#
        );
        succeed(Command::new("sh").args(["-c", &script])).context("patching the servers")?;
        fs::write(patched(&self.root), "")?;
        Ok(())
    }
}

/// Without a box, root becomes nobody.
fn unboxed(data: &Path) -> Result<Command> {
    if !getuid().is_root() {
        let mut command = Command::new("env");
        command.current_dir(data).arg("--");
        return Ok(command);
    }
    succeed(Command::new("chown").arg("-R").arg("nobody:nogroup").arg(data))?;
    let mut command = Command::new("setpriv");
    command.current_dir(data).args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]);
    Ok(command)
}

fn patched(root: &Path) -> PathBuf {
    root.join("patched")
}

fn can_box() -> bool {
    let mut command = Command::new("bwrap");
    command.args(["--unshare-user", "--uid", "1000", "--gid", "1000"]).args([
        "--ro-bind",
        "/",
        "/",
        "true",
    ]);
    is_successful(&mut command)
}

fn is_successful(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Installs the small tools that unpack the tree, or says how.
fn require_tools() -> Result<()> {
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, _)| !is_successful(Command::new(program).arg("--version")))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_successful(Command::new("apt-get").arg("--version")) {
        bail!(
            "there is neither a container engine nor Debian's apt-get to get servers with: set \
             EVENT_STORE_URL, AMQP_URL, READ_MODEL_URL and RABBITMQ_MANAGEMENT_URL"
        );
    }
    let install = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !getuid().is_root() {
        bail!("run `sudo {install}` once, then this again");
    }
    eprintln!("installing {}", missing.join(", "));
    let quiet = format!("{{ apt-get update && {install}; }} >/dev/null");
    succeed(Command::new("sh").args(["-c", &quiet]).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// The mirror that this machine's apt uses; other suites lie beside its own.
fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)"])
        .args(["Identifier: Packages", "Origin: Debian", "Component: main"])
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    text.lines().next().map(str::to_owned).context("apt knows no Debian mirror: run apt-get update")
}

fn unpack(root: &Path, log: &Path) -> Result<()> {
    let mirror = mirror().or_else(|_| {
        if getuid().is_root() {
            succeed(Command::new("apt-get").args(["-qq", "update"]))?;
        }
        mirror()
    })?;
    eprintln!("unpacking PostgreSQL, RabbitMQ and MySQL (about 570 MB, once)");
    let new = root.with_extension("new");
    remove(&new)?;
    let output = fs::File::create(log)?;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=chrootless", "--variant=extract", "--components=main"])
        // A frozen mirror of sid is past its date within a week.
        .args(["--aptopt=Acquire::Check-Valid-Until \"false\""])
        .args([
            "--aptopt=Acquire::Languages \"none\"",
            "--aptopt=APT::Install-Recommends \"false\"",
        ])
        .arg(format!("--include={PACKAGES}"))
        .arg(SUITE)
        .arg(&new)
        .arg(mirror)
        .stdout(output.try_clone()?)
        .stderr(output);
    succeed(&mut command)
        .with_context(|| format!("unpacking the servers: see {}", log.display()))?;
    for folder in ["doc", "man", "locale", "i18n", "info", "systemd"] {
        remove(&new.join("usr/share").join(folder))?;
    }
    for file in ["passwd", "group", "hosts", "resolv.conf"] {
        let path = new.join("etc").join(file);
        if !path.exists() {
            fs::write(path, "")?;
        }
    }
    // No script of a package ran, so nobody has written the cache of the libraries.
    let own = new.join("usr/sbin/ldconfig");
    if !is_successful(Command::new(own).arg("-r").arg(&new)) {
        is_successful(Command::new("/sbin/ldconfig").arg("-r").arg(&new));
    }
    remove(root)?;
    fs::rename(&new, root)?;
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() { Ok(fs::remove_dir_all(folder)?) } else { Ok(()) }
}
