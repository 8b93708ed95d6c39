# The NixOS module `services.ondine`: a binary cache that builds what it is missing, as a hardened service
# with its own user. The program checks the settings while the system is built, so that a system whose server
# would not start is never activated.
{ config, lib, pkgs, ... }:

let
  cfg = config.services.ondine;
  format = pkgs.formats.toml { };
  stateDir = "/var/lib/ondine";

  # Names under which systemd passes files with secrets, which the service's user need not be able to read.
  secretName = n: "upstream-${toString n}";
  netrcFile = cfg.settings.netrc-file or null;
  settings = cfg.settings // {
    upstream = lib.imap0 (
      n: upstream:
      upstream // lib.optionalAttrs (upstream ? credentials-file) { credentials-file = secretName n; }
    ) cfg.settings.upstream;
  } // lib.optionalAttrs (netrcFile != null) { netrc-file = "netrc"; };
  secrets = lib.concatLists (
    lib.imap0 (
      n: upstream: lib.optional (upstream ? credentials-file) "${secretName n}:${upstream.credentials-file}"
    ) cfg.settings.upstream
  ) ++ lib.optional (netrcFile != null) "netrc:${netrcFile}";
  # Settings are in the Nix store, where everyone can read them.
  isSecret = url: builtins.match ".*[@?].*" url != null;

  written = format.generate "ondine.toml" settings;
  checked = pkgs.runCommand "ondine-checked.toml" { } ''
    STATE_DIRECTORY=${stateDir} ${cfg.package}/bin/ondine check-config --settings-only ${written}
    cp ${written} "$out"
  '';

  settingsFile = if cfg.checkConfig then checked else written;

  port = lib.toInt (lib.last (lib.splitString ":" cfg.settings.listen));
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

    settings = lib.mkOption {
      default = { };
      description = ''
        Settings of the server, named as in `ondine serve --help`. The state is always in ${stateDir}.
      '';
      example = {
        listen = "[::]:8080";
        build-from = [ "store" ];
      };
      type = lib.types.submodule {
        freeformType = format.type;
        options = {
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
          upstream = lib.mkOption {
            type = lib.types.listOf format.type;
            default = [ ];
            example = [
              {
                url = "https://cache.nixos.org";
                public-keys = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
              }
            ];
            description = ''
              Other caches, each with its `url` and `public-keys`. The module makes them trusted substituters
              of the Nix daemon, too, with these keys: the daemon takes inputs of builds only from substituters
              that it trusts.

              Credentials do not belong into `url`, which everyone can read in the Nix store.
              `credentials-file` names a file with `USER:PASSWORD` or `Bearer TOKEN`; `netrc-file`, beside
              `upstream`, names a netrc file. systemd reads both (LoadCredential). To take inputs of builds
              from there, the Nix daemon needs a netrc file of its own ({option}`nix.settings.netrc-file`).
            '';
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
        assertion = !(builtins.any (upstream: isSecret upstream.url) cfg.settings.upstream);
        message = ''
          services.ondine.settings.upstream: a url with credentials would be readable by everyone in the Nix
          store; use credentials-file
        '';
      }
    ];

    # A fixed user: the state directory holds GC roots that Nix's own point to by path.
    users.users.ondine = {
      isSystemUser = true;
      group = "ondine";
      description = "Ondine binary cache";
    };
    users.groups.ondine = { };

    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall [ port ];

    # An upstream that turns out to be an Ondine is used below /cached, where it builds nothing.
    nix.settings.trusted-substituters = lib.concatMap (upstream: [
      upstream.url
      "${lib.removeSuffix "/" upstream.url}/cached"
    ]) cfg.settings.upstream;
    nix.settings.trusted-public-keys =
      lib.concatMap (upstream: upstream.public-keys or [ ]) cfg.settings.upstream;

    systemd.services.ondine = {
      description = "Nix binary cache that builds what it is missing";
      wantedBy = [ "multi-user.target" ];
      wants = [ "nix-daemon.socket" ];
      after = [ "network.target" "nix-daemon.socket" ];
      # `nix` detects the systems and features that the daemon builds for; `nix-instantiate`, or
      # `nix-eval-jobs` where that is added, evaluates package sets.
      path = [ config.nix.package ];

      serviceConfig = {
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
        CapabilityBoundingSet = "";
        AmbientCapabilities = "";
        DevicePolicy = "closed";
        KeyringMode = "private";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        NotifyAccess = "none";
        PrivateDevices = true;
        PrivateMounts = true;
        PrivateTmp = true;
        PrivateUsers = true;
        ProcSubset = "pid";
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        RemoveIPC = true;
        RestrictAddressFamilies = [ "AF_UNIX" "AF_INET" "AF_INET6" ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallErrorNumber = "EPERM";
        # mincore shows which pages of a stored file are in memory; landlock and seccomp isolate evaluators.
        SystemCallFilter = [
          "@system-service mincore landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp"
          "~@privileged @resources"
        ];
      };
    };
  };
}
