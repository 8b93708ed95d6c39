# The NixOS module `services.ondine.client`: this machine takes store paths from an Ondine, and has it build
# what is missing.
{ config, lib, ... }:

let
  cfg = config.services.ondine.client;
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
    ];

    nix.settings = {
      substituters = [ cfg.url ];
      trusted-public-keys = cfg.publicKeys;
      always-allow-substitutes = cfg.alwaysAllowSubstitutes;
      narinfo-cache-negative-ttl = cfg.negativeCacheSeconds;
    } // lib.optionalAttrs (cfg.netrcFile != null) { netrc-file = cfg.netrcFile; };
  };
}
