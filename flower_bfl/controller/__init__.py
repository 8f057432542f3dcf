"""Resource controllers: who offloads where, with how much power, bandwidth, CPU and hash rate."""

from flower_bfl.controller.base import Controller as Controller
from flower_bfl.controller.heuristics import AllLocalController as AllLocalController
from flower_bfl.controller.heuristics import GreedyController as GreedyController
from flower_bfl.controller.heuristics import RandomController as RandomController
from flower_bfl.controller.learned import A2CController as A2CController
from flower_bfl.controller.solver import AssignmentController as AssignmentController
from flower_bfl.controller.solver import NearOptimalController as NearOptimalController
from flower_bfl.controller.solver import Solution as Solution
