# The NixOS module `services.ondine.client`: this machine takes store paths from an Ondine, has it build what is
# missing, and uploads what it has built itself where that is wanted.
{ config, lib, pkgs, ... }:

let
  cfg = config.services.ondine.client;
  queue = "/var/lib/ondine-push";
  login = lib.splitString "@" cfg.builder.address;
  # Nix runs it after each build and waits for it: it only writes a small file.
  hook = pkgs.writeShellScript "ondine-push-hook" ''
    set -f
    # Nix 2.8 leaves OUT_PATHS empty.
    paths=''${OUT_PATHS:-$(${config.nix.package}/bin/nix-store --query --outputs "$DRV_PATH")}
    exec ${cfg.package}/bin/ondine push --queue ${queue} $paths
  '';
in
{
  options.services.ondine.client = {
    enable = lib.mkEnableOption "an Ondine as a substituter of this machine";

    url = lib.mkOption {
      type = lib.types.str;
      example = "https://cache.example.org";
      description = "Address of the server, as it prints it when it starts.";
    };

    publicKeys = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      example = [ "cache-1:BixRUZqVb+oC+4P1C3wHRqppp0IrCrlguZK+TEvLtsc=" ];
      description = "Public keys of the server; it prints the one to trust when it starts.";
    };

    netrcFile = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      description = ''
        File with the login for the server, as curl's .netrc. It must not be in the Nix store, where everyone can
        read it.
      '';
    };

    alwaysAllowSubstitutes = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = ''
        Whether derivations that ask to be built locally are taken from the server, too. Most of nixpkgs' small
        derivations do; without this, each machine builds them itself.
      '';
    };

    negativeCacheSeconds = lib.mkOption {
      type = lib.types.ints.unsigned;
      default = 3600;
      description = ''
        Seconds for which Nix remembers that the server has no such path, and does not ask again
        (`narinfo-cache-negative-ttl`). With a lower number, a package set that the server has just learnt of is
        used sooner.
      '';
    };

    package = lib.mkOption {
      type = lib.types.nullOr lib.types.package;
      default = null;
      description = "The package whose `bin/ondine` uploads; the flake's module sets it.";
    };

    builder = {
      enable = lib.mkEnableOption ''
        builds of this machine's Nix on the server, as its remote builder
        ({option}`services.ondine.remoteBuilder` there)'';

      address = lib.mkOption {
        type = lib.types.str;
        default = "";
        example = "nix-builder@cache.example.org";
        description = "Login on the server for builds, as `USER@HOST`.";
      };

      sshKey = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        example = "/root/.ssh/builder";
        description = "Private key for the login, which root can read. It must not be in the Nix store.";
      };

      publicHostKey = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        description = "Public key of the server's sshd in base64, as Nix has it; without one, ssh's known hosts count.";
      };

      systems = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ "x86_64-linux" ];
        description = "Systems that the server builds for.";
      };

      features = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ "benchmark" "big-parallel" "kvm" "nixos-test" ];
        description = "System features of builds that are sent to the server.";
      };

      maxJobs = lib.mkOption {
        type = lib.types.ints.between 1 1000;
        default = 8;
        description = "Builds that are sent at a time; the server has an order of its own.";
      };

      only = lib.mkOption {
        type = lib.types.bool;
        default = true;
        description = "Whether this machine builds nothing itself (`max-jobs = 0`).";
      };
    };

    push = {
      enable = lib.mkEnableOption "uploads of all that this machine builds, by a durable queue";

      tokenFile = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        example = "/run/secrets/ondine-token";
        description = ''
          File with a token that has the rights `read` and `push`, and `vouch` unless the paths are signed by a key
          that the server trusts. Root alone needs to read it. It must not be in the Nix store.
        '';
      };
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = builtins.match "https?://[^@?#]+" cfg.url != null;
        message = ''
          services.ondine.client.url: expected an address such as https://cache.example.org, without a password,
          not "${cfg.url}"; a login belongs into netrcFile
        '';
      }
      {
        assertion = cfg.publicKeys != [ ];
        message = "services.ondine.client.publicKeys: without a key, Nix refuses all that the server sends";
      }
      {
        assertion = builtins.all (key: builtins.match "[^: ]+:[A-Za-z0-9+/]{43}=" key != null) cfg.publicKeys;
        message = "services.ondine.client.publicKeys: expected NAME:KEY as the server prints it";
      }
      {
        assertion = cfg.netrcFile == null || builtins.match "/nix/store/.*" cfg.netrcFile == null;
        message = "services.ondine.client.netrcFile: everyone can read ${toString cfg.netrcFile}";
      }
      {
        assertion = !cfg.builder.enable || builtins.match "[^@ ]+@[^@ ]+" cfg.builder.address != null;
        message = ''
          services.ondine.client.builder.address: expected a login such as nix-builder@cache.example.org, not
          "${cfg.builder.address}"
        '';
      }
      {
        assertion = builtins.match "/nix/store/.*" (toString cfg.builder.sshKey) == null;
        message = "services.ondine.client.builder.sshKey: everyone can read ${toString cfg.builder.sshKey}";
      }
      {
        assertion = !cfg.push.enable || cfg.package != null;
        message = "services.ondine.client.package: uploads need the program; set the package that has it";
      }
      {
        assertion = !cfg.push.enable || builtins.match "/nix/store/.*|" (toString cfg.push.tokenFile) == null;
        message = ''
          services.ondine.client.push.tokenFile: uploads need a file with a token, outside of the Nix store, where
          everyone can read it
        '';
      }
    ];

    nix.settings = {
      substituters = [ cfg.url ];
      trusted-public-keys = cfg.publicKeys;
      always-allow-substitutes = cfg.alwaysAllowSubstitutes;
      narinfo-cache-negative-ttl = cfg.negativeCacheSeconds;
    } // lib.optionalAttrs (cfg.netrcFile != null) { netrc-file = cfg.netrcFile; }
    // lib.optionalAttrs cfg.push.enable { post-build-hook = "${hook}"; }
    // lib.optionalAttrs cfg.builder.enable { builders-use-substitutes = true; }
    // lib.optionalAttrs (cfg.builder.enable && cfg.builder.only) { max-jobs = 0; };

    # Commands of ondine ask the server without being told its address.
    environment.etc."ondine/config.toml".text = "server = ${builtins.toJSON cfg.url}\n";

    nix.distributedBuilds = lib.mkIf cfg.builder.enable true;
    nix.buildMachines = lib.mkIf cfg.builder.enable [
      {
        protocol = "ssh-ng";
        sshUser = builtins.head login;
        hostName = lib.last login;
        inherit (cfg.builder) sshKey publicHostKey systems maxJobs;
        supportedFeatures = cfg.builder.features;
      }
    ];

    systemd.services = lib.optionalAttrs cfg.push.enable {
      ondine-push = {
        description = "Sender of the queue of uploads to Ondine";
        wantedBy = [ "multi-user.target" ];
        after = [ "network.target" ];
        path = [ config.nix.package ];
        environment = {
          # The database of Nix is read through its daemon.
          NIX_REMOTE = "daemon";
          HOME = queue;
        };
        serviceConfig = import ./hardening.nix // {
          ExecStart = "${cfg.package}/bin/ondine push --server ${cfg.url} --token-file %d/token --send-queue ${queue} --follow";
          LoadCredential = [ "token:${toString cfg.push.tokenFile}" ];
          # Root, as the hook is: both use the queue.
          StateDirectory = "ondine-push";
          StateDirectoryMode = "0700";
          UMask = "0077";
          Restart = "always";
          RestartSec = 10;

          RestrictAddressFamilies = [ "AF_UNIX" "AF_INET" "AF_INET6" ];
          SystemCallFilter = [ "@system-service" "~@privileged @resources" ];
        };
      };
    };
  };
}
