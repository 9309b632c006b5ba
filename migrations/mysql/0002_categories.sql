-- The categories that a projection was built from: with others, its history would be incomplete.
ALTER TABLE projector_projections ADD COLUMN categories TEXT CHARACTER SET utf8mb4 NULL;
