# The NixOS module `services.ondine`: a binary cache that builds what it is missing, as a hardened service with a user of
# its own. The settings are checked by the program itself while the system is built, so that one that does not start is
# never switched to.
{ config, lib, pkgs, ... }:

let
  cfg = config.services.ondine;
  format = pkgs.formats.toml { };
  stateDir = "/var/lib/ondine";

  # Systemd hands files with secrets over, which the service's user need not be able to read, under these names.
  secretName = n: "upstream-${toString n}";
  netrcFile = cfg.settings.netrc-file or null;
  settings = cfg.settings // {
    upstream = lib.imap0 (
      n: upstream: upstream // lib.optionalAttrs (upstream ? credentials-file) { credentials-file = secretName n; }
    ) cfg.settings.upstream;
  } // lib.optionalAttrs (netrcFile != null) { netrc-file = "netrc"; };
  secrets = lib.concatLists (
    lib.imap0 (
      n: upstream: lib.optional (upstream ? credentials-file) "${secretName n}:${upstream.credentials-file}"
    ) cfg.settings.upstream
  ) ++ lib.optional (netrcFile != null) "netrc:${netrcFile}";
  # What is in a setting stands in the Nix store, where everyone can read it.
  isSecret = url: builtins.match ".*[@?].*" url != null;

  written = format.generate "ondine.toml" settings;
  checked = pkgs.runCommand "ondine-checked.toml" { } ''
    STATE_DIRECTORY=${stateDir} ${cfg.package}/bin/ondine check-config --settings-only ${written}
    cp ${written} "$out"
  '';

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
        Whether to have `ondine check-config` look at the settings when the system is built. Turn it off where the
        building machine cannot run the package.
      '';
    };

    settings = lib.mkOption {
      default = { };
      description = ''
        Settings as `ondine serve --help` names them, written as TOML. The state is always in ${stateDir}.
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
            description = "How long open answers are given to end when the service stops.";
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
              Other caches, each with its `url` and `public-keys`. They become trusted substituters of the Nix daemon with
              these keys, so that builds may take their inputs from them, too; the daemon would ignore that otherwise,
              coming from a user without trust.

              Credentials are not for `url`, which everyone can read in the Nix store: `credentials-file` names a file with
              `USER:PASSWORD` or `Bearer TOKEN`, and `netrc-file`, beside `upstream`, a netrc file. systemd reads them
              (LoadCredential). The Nix daemon needs them in a netrc file of its own
              ({option}`nix.settings.netrc-file`) to take inputs of builds from there.
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
        message = "services.ondine.settings.upstream: a url with credentials would be readable by everyone in the Nix store; use credentials-file";
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
    nix.settings.trusted-public-keys = lib.concatMap (upstream: upstream.public-keys or [ ]) cfg.settings.upstream;

    systemd.services.ondine = {
      description = "Nix binary cache that builds what it is missing";
      wantedBy = [ "multi-user.target" ];
      wants = [ "nix-daemon.socket" ];
      after = [ "network.target" "nix-daemon.socket" ];
      # It asks `nix` for which systems and with which features the daemon builds, and has `nix-instantiate` evaluate package sets,
      # or `nix-eval-jobs` where that is added.
      path = [ config.nix.package ];

      serviceConfig = {
        ExecStart = "${cfg.package}/bin/ondine serve --config ${if cfg.checkConfig then checked else written} --state-dir ${stateDir}";
        User = "ondine";
        Group = "ondine";
        StateDirectory = "ondine";
        StateDirectoryMode = "0700";
        LoadCredential = secrets;
        UMask = "0077";
        Restart = "on-failure";
        RestartSec = 2;
        # systemd adds the parts of a time span up: always longer than the server's own limit.
        TimeoutStopSec = "${cfg.settings.drain-timeout} 30s";
        # Clients keep connections open; each stored NAR under way takes one more.
        LimitNOFILE = 65536;

        # It needs the network, the daemon's socket, Nix's store and database to read, and its state directory.
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
        # It asks which pages of a stored file are in memory, and isolates evaluators.
        SystemCallFilter = [
          "@system-service mincore landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp"
          "~@privileged @resources"
        ];
      };
    };
  };
}
