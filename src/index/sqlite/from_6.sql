-- From schema 6 to schema 7: attributes of package sets know which output they are.

ALTER TABLE catalogue_attribute ADD COLUMN output TEXT;
ALTER TABLE catalogue_new_attribute ADD COLUMN output TEXT;
