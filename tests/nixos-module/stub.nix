# As much of nixpkgs' `lib` and `pkgs` as nixos-module/default.nix needs to be evaluated without nixpkgs, written for
# that alone. It merges one machine's configuration into the module's options, refuses options and values that do not
# fit, and gives back the configuration that comes out. Files it writes are real, so that scripts can be run.
{
  # The module's file.
  module,
  # What a machine's configuration.nix says, as JSON, with the package as a path.
  machine,
}:

let
  inherit (builtins) all any attrNames concatStringsSep elem elemAt filter fromJSON hasAttr isAttrs isBool isInt isList
    isString length map split stringLength substring;

  # Types: whether a value fits, and how a definition and the options' defaults make the value.
  plain = name: fits: {
    inherit name fits;
    merge = where: value: if fits value then value else wrong where name;
  };
  wrong = where: name: throw "A definition for option `${where}' is not of type `${name}'.";

  isOption = value: isAttrs value && value._type or "" == "option";

  # The value of a tree of options under a definition of it. `free` is the type of names that are no option, or null.
  mergeOptions = where: free: options: definition:
    let
      known = builtins.mapAttrs (name: option: mergeOne "${where}.${name}" option (hasAttr name definition) (definition.${name} or null)) options;
      others = removeAttrs definition (attrNames options);
      extra = builtins.mapAttrs (name: value:
        if free == null then throw "The option `${where}.${name}' does not exist." else free.merge "${where}.${name}" value) others;
    in
    known // extra;

  mergeOne = where: option: isDefined: value:
    if !isOption option then mergeOptions where null option (if isDefined then value else { })
    else if isDefined then option.type.merge where value
    else if option ? default then option.type.merge where option.default
    else throw "The option `${where}' was accessed but has no value defined.";

  tomlValue = plain "TOML value" (value: isString value || isInt value || isBool value || isList value || isAttrs value);

  lib = rec {
    mkOption = attributes: attributes // { _type = "option"; };
    mkEnableOption = what: mkOption { type = types.bool; default = false; description = "Whether to enable ${what}."; };
    mkIf = condition: content: { _type = "if"; inherit condition content; };
    mkDefault = value: value;
    types = {
      bool = plain "boolean" isBool;
      str = plain "string" isString;
      int = plain "signed integer" isInt;
      package = plain "package" (value: isString value || value ? outPath);
      enum = words: plain "one of ${concatStringsSep ", " (map builtins.toJSON words)}" (value: elem value words);
      ints = {
        between = min: max: plain "integer between ${toString min} and ${toString max} (both inclusive)"
          (value: isInt value && value >= min && value <= max);
        unsigned = plain "unsigned integer, meaning >=0" (value: isInt value && value >= 0);
      };
      either = one: other: plain "${one.name} or ${other.name}" (value: one.fits value || other.fits value);
      nullOr = inner: {
        name = "null or ${inner.name}";
        fits = value: value == null || inner.fits value;
        merge = where: value:
          if value == null then null
          else if inner.fits value then inner.merge where value else wrong where "null or ${inner.name}";
      };
      listOf = inner: {
        name = "list of ${inner.name}";
        fits = isList;
        merge = where: value:
          if isList value then map (inner.merge "${where}.*") value else wrong where "list of ${inner.name}";
      };
      submodule = { options ? { }, freeformType ? null }: {
        name = "submodule";
        fits = isAttrs;
        merge = where: value:
          if isAttrs value then mergeOptions where freeformType options value else wrong where "submodule";
      };
    };
    filterAttrs = fits: set: removeAttrs set (filter (name: !fits name set.${name}) (attrNames set));
    importJSON = path: fromJSON (builtins.readFile path);
    optionalString = condition: text: if condition then text else "";
    inherit (builtins) mapAttrs;
    toInt = text: fromJSON text;
    inherit (builtins) concatLists concatMap;
    imap0 = f: list: builtins.genList (n: f n (elemAt list n)) (length list);
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: value: if condition then value else { };
    removeSuffix = suffix: text:
      let bytes = stringLength text - stringLength suffix;
      in if bytes >= 0 && substring bytes (-1) text == suffix then substring 0 bytes text else text;
    last = list: elemAt list (length list - 1);
    splitString = separator: text: builtins.filter isString (split "[${separator}]" text);
  };

  pkgs = import ./pkgs.nix { tomlType = tomlValue; };

  # Conditions resolved.
  resolve = value:
    if isAttrs value && value._type or "" == "if" then (if value.condition then resolve value.content else null)
    else if isAttrs value then builtins.mapAttrs (name: resolve) value
    else value;

  configuration = fromJSON machine;
  evaluated = import module {
    inherit lib pkgs;
    config.services.ondine = service;
    config.nix.package = "/nix/store/the-nix-of-this-machine";
  };
  service = mergeOne "services.ondine" evaluated.options.services.ondine true configuration.services.ondine;
  broken = builtins.filter (assertion: !assertion.assertion) evaluated.config.content.assertions;
  enabled = evaluated.config.condition;
  names = import ./nixos.nix;
  unknown = known: set: filter (name: !elem name known) (attrNames set);
  defined = evaluated.config.content;
  strange =
    unknown ([ "assertions" "services" ] ++ names.groups) defined
    ++ unknown names.services (resolve (defined.services or { }));
in
if enabled && strange != [ ] then throw "not in ./nixos.nix: ${concatStringsSep ", " strange}" else
if enabled && broken != [ ] then throw (concatStringsSep "\n" (map (assertion: assertion.message) broken))
# Every option is looked at, as nixpkgs does, also those that the module would not have come to.
else builtins.deepSeq service (resolve evaluated.config)
