# Options of NixOS that the modules define, beside `assertions`: no others are known to ./real.nix, and
# ./stub.nix refuses others.
{
  groups = [ "environment" "networking" "nix" "systemd" "users" ];
  services = [ "caddy" "nginx" "openssh" "prometheus" ];
}
