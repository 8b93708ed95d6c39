# The NixOS module `services.ondine`: a binary cache that builds what it is missing, as a hardened service
# with its own user. Options are made from the program's table of settings (./settings.json). The program checks
# the values while the system is built, so that a system whose server would not start is never activated.
{ config, lib, pkgs, ... }:

let
  cfg = config.services.ondine;
  format = pkgs.formats.toml { };
  stateDir = "/var/lib/ondine";
  credentials = "/run/credentials/ondine.service";

  # Options of settings that nobody sets are null and are left out: the program has the defaults.
  withoutNull = value:
    if builtins.isList value then map withoutNull value
    else if builtins.isAttrs value then
      lib.mapAttrs (_: withoutNull) (lib.filterAttrs (_: inner: inner != null) value)
    else value;
  given = withoutNull cfg.settings;

  # Names under which systemd passes files with secrets, which the service's user need not be able to read.
  secretName = n: "upstream-${toString n}";
  keyName = n: "signing-key-${toString n}";
  upstreams = given.upstream or [ ];
  netrcFile = given.netrc-file or null;
  keyFiles = given.signing-key or [ ];
  proxyHost = toString (if cfg.nginx.enable then cfg.nginx.host else cfg.caddy.host);
  isProxied = cfg.nginx.enable || cfg.caddy.enable;
  proxySettings = lib.optionalAttrs isProxied {
    trusted-proxies = given.trusted-proxies or [ "127.0.0.1" "::1" ];
    public-url = given.public-url or "https://${proxyHost}";
  };
  settings = given // proxySettings // {
    upstream = lib.imap0 (
      n: upstream:
      upstream // lib.optionalAttrs (upstream ? credentials-file) { credentials-file = secretName n; }
    ) upstreams;
  } // lib.optionalAttrs (netrcFile != null) { netrc-file = "netrc"; }
  // lib.optionalAttrs (keyFiles != [ ]) {
    signing-key = lib.imap0 (n: _: "${credentials}/${keyName n}") keyFiles;
  };
  secrets = lib.concatLists (
    lib.imap0 (
      n: upstream: lib.optional (upstream ? credentials-file) "${secretName n}:${upstream.credentials-file}"
    ) upstreams
  ) ++ lib.optional (netrcFile != null) "netrc:${netrcFile}"
  ++ lib.imap0 (n: file: "${keyName n}:${file}") keyFiles;
  # Settings are in the Nix store, where everyone can read them.
  isSecret = url: builtins.match ".*[@?].*" url != null;

  written = format.generate "ondine.toml" settings;
  checked = pkgs.runCommand "ondine-checked.toml" { } ''
    STATE_DIRECTORY=${stateDir} ${cfg.package}/bin/ondine check-config --settings-only ${written}
    cp ${written} "$out"
  '';

  settingsFile = if cfg.checkConfig then checked else written;

  port = lib.toInt (lib.last (lib.splitString ":" cfg.settings.listen));
  # Where programs of this machine reach the server.
  local = "127.0.0.1:${toString port}";

  builder = cfg.remoteBuilder;
  builderHome = "/var/lib/nix-builder";

  # What neither the server nor a command beside it needs.
  hardened = import ./hardening.nix // { PrivateUsers = true; };

  types = lib.types;
  # The type of a setting, which the table describes.
  typeOf = setting:
    let value = setting.value;
    in {
      bool = types.bool;
      number =
        if value.max != null then types.ints.between value.min value.max
        else if value.min >= 0 then types.ints.unsigned
        else types.int;
      bytes = types.either types.int types.str;
      text = types.str;
      texts = types.listOf types.str;
      word = types.enum value.words;
      words = types.listOf (types.enum value.words);
      table = tableOf setting.keys;
      tables = types.listOf (tableOf setting.keys);
    }.${value.type};
  tableOf = keys: types.submodule {
    freeformType = format.type;
    options = optionsOf keys;
  };
  optionOf = setting: {
    inherit (setting) name;
    value = lib.mkOption ({
      description = ''
        ${setting.doc}

        Accepts ${setting.accepted}.${lib.optionalString (setting.default != null) " Default: ${setting.default}."}
      '';
    } // (if setting.required then { type = typeOf setting; } else {
      type = types.nullOr (typeOf setting);
      default = null;
    }));
  };
  optionsOf = settings: builtins.listToAttrs (map optionOf settings);
  # The state is always in the directory of the service.
  table = builtins.filter (setting: setting.name != "state-dir") (lib.importJSON ./settings.json);
  generated = optionsOf table;
in
{
  options.services.ondine = {
    enable = lib.mkEnableOption "Ondine, a Nix binary cache that builds what it is missing";

    package = lib.mkOption {
      type = lib.types.package;
      description = "The package whose `bin/ondine` runs.";
    };

    openFirewall = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Whether to open the port of {option}`services.ondine.settings.listen` in the firewall.";
    };

    checkConfig = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = ''
        Whether to check the settings with `ondine check-config` when the system is built. Turn it off where
        the building machine cannot run the package.
      '';
    };

    socketActivation = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = ''
        Whether systemd listens on {option}`services.ondine.settings.listen` for the server. Then no client is
        refused while the service restarts, and ports below 1024 need no capability.
      '';
    };

    limitBuilds = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = ''
        Whether the Nix daemon, whose children builds are, gets less processor time and I/O than everything
        else, and at most 85 % of the memory. Each value is a default that a system can set differently.
      '';
    };

    nginx = {
      enable = lib.mkEnableOption "an nginx virtual host before the server";
      host = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        example = "cache.example.org";
        description = "Name of the virtual host. Certificates are set in {option}`services.nginx.virtualHosts`.";
      };
    };

    caddy = {
      enable = lib.mkEnableOption "a Caddy virtual host before the server, which gets its own certificate";
      host = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        example = "cache.example.org";
        description = "Name of the virtual host.";
      };
    };

    remoteBuilder = {
      enable = lib.mkEnableOption "the server as a remote builder of other machines, through sshd";

      user = lib.mkOption {
        type = lib.types.str;
        default = "nix-builder";
        description = "Name of the user that other machines log in as: `builders = ssh-ng://nix-builder@HOST`.";
      };

      authorizedKeys = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIH8yVbmCzV0YqvXZzFDfqRkYy0KkxzC0rYvA1m2eFQwM alice" ];
        description = "Public keys of those machines. Whoever has one can start builds, and nothing else.";
      };

      tokenFile = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        example = "${builderHome}/token";
        description = ''
          File with a token with the rights `read`, `build` and `push`, which the user can read. It must not be in
          the Nix store, where everyone can read it.
        '';
      };
    };

    prometheus = {
      enable = lib.mkEnableOption "scraping of the metrics by this machine's Prometheus, and the alerts";

      tokenFile = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        example = "/run/secrets/ondine-metrics";
        description = ''
          File with a token with the right `read`, which Prometheus' user can read. A server that lets nobody read
          without a token (`read = "token"`) needs it. It must not be in the Nix store, where everyone can read it;
          {option}`services.prometheus.checkConfig` has to be `"syntax-only"` then, since the file is not there when
          the system is built.
        '';
      };
    };

    backup = {
      enable = lib.mkEnableOption ''
        copies of what cannot be made again: the signing keys, and the index with its tokens and pins. A backup
        program is to take them from {option}`services.ondine.backup.location`'';
      location = lib.mkOption {
        type = lib.types.str;
        default = "/var/backup/ondine";
        description = "Directory of the copies, which only the server's user and root may read.";
      };
      startAt = lib.mkOption {
        type = lib.types.str;
        default = "daily";
        example = "03:30";
        description = "Time of the copies, as in {manpage}`systemd.time(7)`.";
      };
      before = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = [ "restic-backups-home.service" ];
        description = "Units of backup programs, each of which has a new copy made before it starts.";
      };
    };

    settings = lib.mkOption {
      default = { };
      description = ''
        Settings of the server, named as in `ondine serve --help`. The state is always in ${stateDir}.

        The module makes upstreams trusted substituters of the Nix daemon, too, with their keys: the daemon takes
        inputs of builds only from substituters that it trusts. Credentials do not belong into an upstream's
        `url`, which everyone can read in the Nix store. systemd reads `credentials-file`, `netrc-file` and
        `signing-key` (LoadCredential), so that they can be readable by root alone. To take inputs of builds from
        an upstream with credentials, the Nix daemon needs a netrc file of its own
        ({option}`nix.settings.netrc-file`).
      '';
      example = {
        listen = "[::]:8080";
        build-from = [ "store" ];
        upstream = [
          {
            url = "https://cache.nixos.org";
            public-keys = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
          }
        ];
      };
      type = lib.types.submodule {
        freeformType = format.type;
        options = generated // {
          listen = lib.mkOption {
            type = lib.types.str;
            default = "127.0.0.1:8080";
            description = "Address and port to listen on.";
          };
          drain-timeout = lib.mkOption {
            type = lib.types.str;
            default = "30s";
            description = "Time that open responses have to end when the service stops.";
          };
        };
      };
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = !(cfg.settings ? state-dir || cfg.settings ? state_dir);
        message = "services.ondine.settings: the state is in ${stateDir}; state-dir cannot be set here";
      }
      {
        assertion = !(builtins.any (upstream: isSecret upstream.url) upstreams);
        message = ''
          services.ondine.settings.upstream: a url with credentials would be readable by everyone in the Nix
          store; use credentials-file
        '';
      }
      {
        assertion = builtins.match ".*:[0-9]+" cfg.settings.listen != null;
        message = ''
          services.ondine.settings.listen: expected an address and a port such as "[::]:8080", not
          "${cfg.settings.listen}"
        '';
      }
      {
        assertion = cfg.nginx.enable -> cfg.nginx.host != null;
        message = "services.ondine.nginx.host: the virtual host needs a name such as cache.example.org";
      }
      {
        assertion = cfg.caddy.enable -> cfg.caddy.host != null;
        message = "services.ondine.caddy.host: the virtual host needs a name such as cache.example.org";
      }
      {
        assertion = !(cfg.nginx.enable && cfg.caddy.enable);
        message = "services.ondine.caddy.enable: nginx is enabled, too; only one of them can be before the server";
      }
      {
        assertion = !(isProxied && cfg.openFirewall);
        message = ''
          services.ondine.openFirewall: with nginx or Caddy before it, the server's own port need not be open;
          open 80 and 443
        '';
      }
      {
        assertion = builder.enable -> builder.tokenFile != null;
        message = "services.ondine.remoteBuilder.tokenFile: uploads and builds of other machines need a token";
      }
      {
        assertion = builder.tokenFile == null || builtins.match "/nix/store/.*" builder.tokenFile == null;
        message = "services.ondine.remoteBuilder.tokenFile: everyone can read ${toString builder.tokenFile}";
      }
      {
        assertion = cfg.prometheus.enable && given.read or null == "token" -> cfg.prometheus.tokenFile != null;
        message = ''
          services.ondine.prometheus.tokenFile: with settings.read = "token", the server shows its metrics to those
          with a token alone
        '';
      }
      {
        assertion = builtins.match "/nix/store/.*" (toString cfg.prometheus.tokenFile) == null;
        message = "services.ondine.prometheus.tokenFile: everyone can read ${toString cfg.prometheus.tokenFile}";
      }
      {
        assertion = builtins.match "/.+" cfg.backup.location != null
          && builtins.match "${stateDir}(/.*)?" cfg.backup.location == null;
        message = "services.ondine.backup.location: give an absolute path outside of ${stateDir}, whose loss it is for";
      }
      {
        assertion = builtins.match "[a-z_][a-z0-9_-]*" builder.user != null;
        message = "services.ondine.remoteBuilder.user: expected a name of a user, not \"${builder.user}\"";
      }
    ];

    # A fixed user: the state directory holds GC roots that Nix's own point to by path.
    users.users = {
      ondine = {
        isSystemUser = true;
        group = "ondine";
        description = "Ondine binary cache";
      };
    } // lib.optionalAttrs builder.enable {
      # sshd starts the command by the user's shell.
      ${builder.user} = {
        isSystemUser = true;
        group = builder.user;
        description = "Remote builder of the Ondine binary cache";
        home = builderHome;
        createHome = true;
        useDefaultShell = true;
        openssh.authorizedKeys.keys = map (key: "restrict ${key}") builder.authorizedKeys;
      };
    };
    users.groups = { ondine = { }; } // lib.optionalAttrs builder.enable { ${builder.user} = { }; };

    services.openssh = lib.mkIf builder.enable {
      enable = true;
      extraConfig = ''
        Match User ${builder.user}
          ForceCommand ${cfg.package}/bin/ondine stdio --server http://${local} --token-file ${toString builder.tokenFile}
          AllowTcpForwarding no
          AllowAgentForwarding no
          AllowStreamLocalForwarding no
          X11Forwarding no
          PermitTTY no
        Match All
      '';
    };

    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall [ port ];

    # An upstream that turns out to be an Ondine is used below /cached, where it builds nothing.
    nix.settings.trusted-substituters = lib.concatMap (upstream: [
      upstream.url
      "${lib.removeSuffix "/" upstream.url}/cached"
    ]) upstreams;
    nix.settings.trusted-public-keys =
      lib.concatMap (upstream: upstream.public-keys or [ ]) upstreams;

    systemd.services.nix-daemon.serviceConfig = lib.mkIf cfg.limitBuilds {
      CPUWeight = lib.mkDefault 20;
      IOWeight = lib.mkDefault 20;
      MemoryHigh = lib.mkDefault "75%";
      MemoryMax = lib.mkDefault "85%";
      OOMPolicy = lib.mkDefault "continue";
    };

    # A client waits for a build as long as it takes; the server sends a line every few seconds.
    services.nginx = lib.mkIf cfg.nginx.enable {
      enable = true;
      virtualHosts.${proxyHost}.locations."/" = {
        proxyPass = "http://${local}";
        extraConfig = ''
          proxy_http_version 1.1;
          proxy_set_header Connection "";
          proxy_set_header Host $host;
          proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
          proxy_set_header X-Forwarded-Proto $scheme;
          proxy_set_header X-Forwarded-Host $host;
          proxy_buffering off;
          proxy_request_buffering off;
          proxy_read_timeout 12h;
          proxy_send_timeout 1h;
          client_max_body_size 0;
        '';
      };
    };

    services.caddy = lib.mkIf cfg.caddy.enable {
      enable = true;
      virtualHosts.${proxyHost}.extraConfig = ''
        reverse_proxy ${local} {
          flush_interval -1
          transport http {
            read_timeout 12h
          }
        }
      '';
    };

    services.prometheus = lib.mkIf cfg.prometheus.enable {
      scrapeConfigs = [
        ({
          job_name = "ondine";
          static_configs = [ { targets = [ local ]; } ];
        } // lib.optionalAttrs (cfg.prometheus.tokenFile != null) {
          authorization.credentials_file = cfg.prometheus.tokenFile;
        })
      ];
      ruleFiles = [ ../dashboards/alerts.yaml ];
    };

    systemd.sockets.ondine = lib.mkIf cfg.socketActivation {
      description = "Address of the Nix binary cache Ondine";
      wantedBy = [ "sockets.target" ];
      listenStreams = [ cfg.settings.listen ];
      socketConfig.Backlog = 4096;
    };

    systemd.tmpfiles.rules = lib.optional cfg.backup.enable "d ${cfg.backup.location} 0700 ondine ondine -";

    systemd.services.ondine-backup = lib.mkIf cfg.backup.enable {
      description = "Copy of the keys and the index of the Nix binary cache Ondine";
      inherit (cfg.backup) before startAt;
      requiredBy = cfg.backup.before;
      serviceConfig = hardened // {
        Type = "oneshot";
        ExecStart = "${cfg.package}/bin/ondine backup ${cfg.backup.location} --config ${settingsFile} --state-dir ${stateDir}";
        User = "ondine";
        Group = "ondine";
        # Readers of the index share memory with the server, in a file beside it.
        ReadWritePaths = [ cfg.backup.location stateDir ];
        UMask = "0077";
        PrivateNetwork = true;
        RestrictAddressFamilies = [ "AF_UNIX" ];
        SystemCallFilter = [ "@system-service" "~@privileged @resources" ];
      };
    };

    systemd.services.ondine = {
      description = "Nix binary cache that builds what it is missing";
      wantedBy = [ "multi-user.target" ];
      requires = lib.optional cfg.socketActivation "ondine.socket";
      wants = [ "nix-daemon.socket" ];
      after = [ "network.target" "nix-daemon.socket" ] ++ lib.optional cfg.socketActivation "ondine.socket";
      # `nix` detects the systems and features that the daemon builds for; `nix-instantiate`, or
      # `nix-eval-jobs` where that is added, evaluates package sets. `ssh` connects to builders.
      path = [ config.nix.package ]
        ++ lib.optional (config ? programs.ssh.package) config.programs.ssh.package;

      serviceConfig = {
        Type = "notify";
        NotifyAccess = "main";
        WatchdogSec = 60;
        # A large index of an older version is migrated before the server is ready.
        TimeoutStartSec = 600;
        ExecStart = "${cfg.package}/bin/ondine serve --config ${settingsFile} --state-dir ${stateDir}";
        User = "ondine";
        Group = "ondine";
        StateDirectory = "ondine";
        StateDirectoryMode = "0700";
        LoadCredential = secrets;
        UMask = "0077";
        Restart = "on-failure";
        RestartSec = 2;
        # systemd adds up the parts of a time span: this is longer than the server's own limit.
        TimeoutStopSec = "${cfg.settings.drain-timeout} 30s";
        # Clients keep connections open; each stored NAR under way takes one more.
        LimitNOFILE = 65536;

        # The server uses the network, the daemon's socket, Nix's store and database (read only), and its
        # state directory.
        RestrictAddressFamilies = [ "AF_UNIX" "AF_INET" "AF_INET6" ];
        # mincore shows which pages of a stored file are in memory; landlock and seccomp isolate evaluators.
        SystemCallFilter = [
          "@system-service mincore landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp"
          "~@privileged @resources"
        ];
      } // hardened;
    };
  };
}
