DROP TABLE throttle_counter;
