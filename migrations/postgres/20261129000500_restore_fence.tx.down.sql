DROP TABLE restore_fence;
